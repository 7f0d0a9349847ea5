import pytest

from handmim.data.datasets import label_ids, read_ids
from handmim.pipelines.train import choose_labels
from tests.data.test_label_subsets import Plain, Shared


def test_number_share_and_file_choose_the_same_labels(tmp_path):
    data = Shared()
    by_share = choose_labels(data, fraction=0.4, seed=3)
    by_number = choose_labels(data, num=2, seed=3)
    by_share.write(tmp_path)
    by_file = choose_labels(data, file=str(tmp_path / "labels.txt"), seed=9)
    for chosen in (by_share, by_number, by_file):
        assert chosen.num == 2
        assert chosen.samples.indices == by_share.samples.indices
    by_file.write(tmp_path)
    text = (tmp_path / "labels.txt").read_text()
    assert text.startswith("# 2 of 5 labels of plain set; as in labels.txt\n")
    assert read_ids(tmp_path / "labels.txt") == label_ids(by_share.samples)


def test_all_labels_are_not_listed(tmp_path):
    data = Plain()
    for chosen in (choose_labels(data), choose_labels(data, fraction=1.0)):
        assert chosen.samples is data
        assert chosen.num == 10
        chosen.write(tmp_path)
    assert not list(tmp_path.iterdir())
    assert choose_labels(data).facts == {}
    (tmp_path / "labels.txt").write_text("of a start that failed")
    choose_labels(data).write(tmp_path)
    assert not list(tmp_path.iterdir())
    assert choose_labels(data, fraction=1e-6).num == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 2, "fraction": 0.5}, "got num_labels=2, label_fraction=0.5"),
        ({"num": 2, "file": "x"}, "got num_labels=2, label_ids=x"),
        ({"fraction": 0.5, "file": "x"}, "got label_fraction=0.5, label_ids=x"),
        ({"fraction": 0.0}, r"label_fraction must be in \(0, 1\], got 0.0"),
        ({"num": 11}, r"num_labels must be in 1\.\.10, got 11"),
    ],
)
def test_one_way_at_a_time(options, message):
    with pytest.raises(ValueError, match=message):
        choose_labels(Plain(), **options)
