import pytest
from omegaconf import OmegaConf

from handmim.utils.build import build


def config(**node):
    return OmegaConf.create({"data": {"train": node}})


def test_an_error_of_the_target_keeps_its_type_and_names_the_key():
    cfg = config(_target_="handmim.data.label_ids.read_ids", path="/nowhere/ids.txt")
    with pytest.raises(FileNotFoundError, match=r"/nowhere/ids\.txt") as caught:
        build(cfg.data.train)
    assert caught.value.__notes__ == ["while building data.train (handmim.data.label_ids.read_ids)"]


def test_the_key_of_a_nested_part_is_named():
    inner = {"_target_": "handmim.engine.schedule.Schedule", "start": 1.0, "shape": "wavy"}
    cfg = config(_target_="builtins.dict", lr=inner)
    with pytest.raises(ValueError, match="wavy") as caught:
        build(cfg.data.train)
    assert "data.train.lr" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"_target_": "handmim.engine.schedule.Schedule", "strat": 1}, "unexpected .* 'strat'"),
        ({"_target_": "handmim.engine.schedule.Schedule"}, "missing .* 'start'"),
        ({"_target_": "handmim.no.Such", "a": 1}, "handmim.no"),
        ({"_target_": "handmim.models.vit.ViT", "arch": "vit_tinny"}, "Unknown model .vit_tinny"),
    ],
)
def test_what_cannot_be_called_is_one_sentence_with_the_key(node, words):
    with pytest.raises(ValueError, match=words) as caught:
        build(config(**node).data.train)
    assert str(caught.value).startswith("data.train (handmim.")
    assert "\n" not in str(caught.value)


def test_arithmetic_of_a_bad_setting_is_a_refusal_with_the_key():
    cfg = config(_target_="handmim.geometry.camera.cell_centres_ndc", num=0)
    with pytest.raises(ValueError, match=r"^data\.train \(.*\) cannot be built: .*zero"):
        build(cfg.data.train)


def test_null_builds_nothing():
    assert build(None) is None
