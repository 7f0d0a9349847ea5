"""Names of before are answered or mapped."""

import re

import pytest

from handmim.utils import renames
from handmim.utils.entry import hydra_overrides


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.setitem(renames.KEYS, "views.hidden", "views.shared")
    monkeypatch.setitem(renames.KEYS, "head=small", "head=plain head.size=small")
    monkeypatch.setitem(renames.TARGETS, "handmim.old", "handmim.new")
    monkeypatch.setitem(renames.TARGETS, "handmim.old.Part", "handmim.elsewhere.Piece")
    monkeypatch.setitem(renames.ARGUMENTS, "handmim.elsewhere.Piece", {"was": "is", "gone": None})


@pytest.mark.usefixtures("tables")
def test_typed_old_keys_are_answered_with_the_new():
    with pytest.raises(ValueError, match=r"write views\.shared\.scale=2"):
        hydra_overrides(["views.hidden.scale=2"])
    with pytest.raises(ValueError, match=r"write \+views\.shared=\{\}|write views\.shared=\{\}"):
        hydra_overrides(["+views.hidden={}"])
    with pytest.raises(ValueError, match=r"write head=plain head\.size=small"):
        hydra_overrides(["head=small"])
    assert hydra_overrides(["head=large", "views.hiddenmost=1"]) == [
        "head=large",
        "views.hiddenmost=1",
    ]


@pytest.mark.parametrize(
    ("word", "now"),
    [
        ("probe=none", "probe.hook=null"),
        ("tta=none", "tta=null"),
        ("optim=adamw_finetune", "nothing instead"),
        ("trainer=pretrain", "nothing instead"),
        ("data.scene.fill=[0.6,0.88]", r"data\.scene\.crop_scale=1\.45, the side"),
        ("scene.fill=0.5", r"scene\.crop_scale=1\.45, the side"),
        ("data.scene.offset=0", "nothing instead: the joints' box is centred"),
    ],
)
def test_options_of_before_are_answered(word, now):
    with pytest.raises(ValueError, match=rf"{re.escape(word)}: renamed, write {now}"):
        hydra_overrides([word])


def test_what_a_budget_held_is_answered():
    with pytest.raises(ValueError, match=r"write budgets\.NAME\.long_steps=10"):
        hydra_overrides(["budget.long_steps=10"])


@pytest.mark.usefixtures("tables")
def test_targets_and_arguments_of_older_checkpoints_are_mapped():
    config = {
        "a": [{"_target_": "handmim.old.Part", "was": 1, "gone": 2, "kept": {"was": 3}}],
        "b": {"_target_": "handmim.old.deep.Part.make", "was": 1},
        "c": "handmim.old",
    }
    renames.update_targets(config)
    assert config == {
        "a": [{"_target_": "handmim.elsewhere.Piece", "is": 1, "kept": {"was": 3}}],
        "b": {"_target_": "handmim.new.deep.Part.make", "was": 1},
        "c": "handmim.old",
    }


def test_scenes_of_older_runs_are_framed_by_the_crop_rule():
    scene = {"image_px": 48, "fill": [0.6, 0.88], "offset": 0.08}
    config = {"data": {"scene": dict(scene), "train": {"num": 4, "scene": dict(scene)}}}
    renames.update_targets(config)
    now = {"image_px": 48}
    assert config == {"data": {"scene": now, "train": {"num": 4, "scene": now}}}


@pytest.mark.usefixtures("tables")
def test_a_config_that_refers_to_itself_is_walked_once():
    config = {"a": {"_target_": "handmim.old"}}
    config["b"] = [config]
    renames.update_targets(config)
    assert config["a"] == {"_target_": "handmim.new"}


@pytest.mark.parametrize(
    ("typed", "now"),
    [
        ("loss=[patch_distill,pixel_recon]", "objective=[patch_distill,pixel_recon]"),
        ("task.losses.patch_distill.weight=1", "task.objectives.patch_distill.weight=1"),
        ("task.losses.pixel_recon.term.kind=l1", "task.objectives.pixel_recon.kind=l1"),
        ("~task.losses.koleo", "task.objectives.koleo"),
        ("task.heads.pixel.depth=8", "task.objectives.pixel_recon.depth=8"),
        ("task.pixel.visible_share=0.1", "task.objectives.pixel_recon.visible_share=0.1"),
        ("pixel_head=decoder", "task.objectives.pixel_recon.head=decoder"),
        ("keypoint_predictor=mlp", "task.objectives.keypoint_align.predictor=true"),
        ("task.losses.joints3d.term.root_joint=0", "task.losses.joints3d.root_joint=0"),
    ],
)
def test_old_settings_of_losses_are_answered(typed, now):
    with pytest.raises(ValueError, match=re.escape(f"write {now}")):
        hydra_overrides([typed])


def test_losses_of_fine_tuning_keep_their_names():
    kept = ["loss=[joints3d,verts]", "task.losses.joints3d.weight=2", "task.heads.keypoint.temp=1"]
    assert hydra_overrides(kept) == kept


def test_later_colours_of_older_runs_are_what_differs():
    later = {"_target_": "handmim.data.colour.ColourJitter", "hue_deg": 36.0, "blur_prob": 0.1}
    config = {"views": {"colour": {"hue_deg": 36.0, "blur_prob": 0.5}, "colour_later": later}}
    for _ in range(2):
        renames.update_targets(config)
        assert config["views"]["colour_later"] == {"blur_prob": 0.1}
