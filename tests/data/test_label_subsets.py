"""Files of label ids: what they say, that they are believed only as written, and come back."""

import hashlib

import pytest
from torch.utils.data import Subset

from handmim.data.datasets import (
    MixedHands,
    ids_text,
    label_ids,
    label_subset,
    read_ids,
    subset_of_ids,
    write_ids,
)


class Plain:
    """A sample is a label."""

    source = "plain set"

    def __len__(self) -> int:
        return 10

    def label_id(self, index: int) -> str:
        return f"seq/{index:02d}"


class Shared(Plain):
    """Ten samples of five labels, as FreiHAND's backgrounds share one."""

    def label_of(self, index: int) -> int:
        return index % 5

    def label_id(self, index: int) -> str:
        return f"hand {index % 5}"


class Bare:
    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("kind", [Plain, Shared, Bare])
def test_a_subset_comes_back_from_its_file_with_its_order(tmp_path, kind):
    data = kind()
    subset = label_subset(data, 3, seed=1)
    path = tmp_path / "labels.txt"
    write_ids(path, subset, "seed 1")
    ids = read_ids(path)
    assert len(ids) == 3
    assert ids == label_ids(subset)
    again = subset_of_ids(data, ids)
    assert isinstance(again, Subset)
    assert again.indices == subset.indices
    assert not list(tmp_path.glob(".*"))


def test_a_mix_names_its_sources_and_their_ids():
    mixed = MixedHands({"a": Plain(), "b": Shared()}, {"a": 1, "b": 1})
    ids = label_ids(mixed)
    assert len(ids) == 15
    assert {"a:seq/03", "b:hand 4"} < set(ids)
    assert mixed.source == "a: plain set; b: plain set"
    some = subset_of_ids(mixed, ["b:hand 4", "a:seq/03"])
    assert label_ids(some) == ["a:seq/03", "b:hand 4"]
    assert len(some) == 3, "both samples of hand 4, once the other"


def test_the_head_names_set_counts_choice_and_the_digest_of_the_lines():
    text = ids_text(["b", "a"], "plain set", 10, "seed 7")
    digest = hashlib.sha256(b"b\na\n").hexdigest()
    assert text == (
        f"# 2 of 10 labels of plain set; seed 7\n# sha256 of the lines without #: {digest}\nb\na\n"
    )


def test_all_ids_are_the_set_itself():
    data = Shared()
    assert subset_of_ids(data, list(reversed(label_ids(data)))) is data


def test_ids_of_another_set_are_named():
    with pytest.raises(
        ValueError, match=r"1 of 2 ids are not among the 10 labels of plain set"
    ) as e:
        subset_of_ids(Plain(), ["seq/01", "seq/10"])
    assert "['seq/10']" in str(e.value)


def test_a_file_is_believed_only_as_it_was_written(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text(ids_text(["3", "1"], "s", 9, "seed 0").replace("\n1\n", "\n2\n"))
    with pytest.raises(ValueError, match="not those its sha256 was written for"):
        read_ids(path)
    path.write_text("# by hand\n\n3\r\n 1 \n")
    assert read_ids(path) == ["3", "1"]
    path.write_text("3\n1\n3\n")
    with pytest.raises(ValueError, match="3 ids, 2 different ones"):
        read_ids(path)
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="0 ids"):
        read_ids(path)
    with pytest.raises(
        FileNotFoundError, match=r"no file of label ids at .*nope \(label_ids=FILE\)"
    ):
        read_ids(tmp_path / "nope")


def test_files_that_hold_no_ids_are_refused_by_name(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\x93NUMPY\xff\xfe")
    with pytest.raises(ValueError, match=r"ids\.txt is no text of label ids.*label_ids=FILE"):
        read_ids(path)
    with path.open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(ValueError, match=r"ids\.txt has 100000000000 bytes, at most 67108864"):
        read_ids(path)


def test_comments_without_end_are_searched_once(tmp_path):
    """Each would be searched to the end of the file: a minute for a megabyte."""
    path = tmp_path / "ids.txt"
    path.write_text("# sha256 \n" * 200_000 + "7\n")
    assert read_ids(path) == ["7"]


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("7\n9\n", encoding="utf-8-sig")
    assert read_ids(path) == ["7", "9"]


def test_a_list_of_ours_that_lost_its_digest_is_refused(tmp_path):
    text = ids_text(["1", "2"], "a set", 3, "seed 0")
    path = tmp_path / "labels.txt"
    for damaged in (text.replace("sha256", "sha257"), text.replace("\n1\n", "\n\0\n")):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="take the original"):
            read_ids(path)
