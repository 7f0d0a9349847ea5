"""Presets: one word for other settings."""

from handmim.utils.overrides import hydra_overrides
from handmim.utils.presets import options_of, presets, written_out


def test_a_preset_is_written_out_before_what_is_given():
    given = ["task.head.dropout=0.5", "head=decoder_small", "seed=1"]
    assert hydra_overrides(given) == [
        "head=decoder",
        "task.head.width=128",
        "task.head.num_heads=4",
        *("task.head.dropout=0.5", "seed=1"),
    ]
    assert hydra_overrides(["collapse=none", "trainer=finetune"]) == ["collapse=null"]
    assert hydra_overrides(["head=pymaf_small", "head=plain_small"])[0] == "head=plain"
    assert hydra_overrides(["head=plain_small", "head=decoder"]) == ["head=decoder"]


def test_choices_beside_a_preset_count_more():
    words = written_out(["experiment=cpu_keypoints_finetune", "data=synthetic"])
    assert words == ["experiment=cpu_finetune", "loss=[joints3d,joints2d,prior]", "data=synthetic"]


def test_presets_are_among_the_options_of_their_group():
    assert options_of("tta") == ["none", "rotations", "rotations_scales"]
    files = {"decoder", "direct", "iterative", "plain", "pymaf", "pymaf_exact", "pymaf_small"}
    named = {word.partition("=")[2] for word in presets() if word.startswith("head=")}
    assert {*options_of("head")} == files | named
