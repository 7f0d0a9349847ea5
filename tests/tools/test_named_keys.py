"""A refused value ends a tool with one message, which names the config key, and code 2."""

import pytest

from tests.tools.calls import call

CASES = {
    "pretrain.py": (["data=synthetic", "views.scale=[-1,2]"], "got [-1, 2] (views.scale)"),
    "finetune.py": (["augment.scale=[-1,2]"], "(augment.scale)"),
    "eval.py": (["checkpoint=x.pt", "predictor=modle"], "predictor must be one of"),
    "synthesize.py": (["root=out", "scene.view=up"], "got 'up' (scene.view)"),
    "benchmark.py": (["rounds=0"], "rounds=0: a whole number >= 1 is required"),
    "doctor.py": (["num_checked=0"], "num_checked=0: a whole number >= 1 is required"),
}


@pytest.mark.parametrize("script", CASES)
def test_a_refused_value_is_named_by_its_key(tmp_path, script):
    overrides, expected = CASES[script]
    text = call(tmp_path, script, *overrides, code=2)
    assert expected in text
    assert len(text.strip().splitlines()) == 1
    assert text.startswith(f"{script}: ")


@pytest.mark.parametrize("script", ["pretrain.py", "finetune.py", "synthesize.py"])
def test_a_missing_value_is_named_by_its_key(tmp_path, script):
    overrides = {
        "pretrain.py": ["data=folder"],
        "finetune.py": ["data=freihand"],
        "synthesize.py": [],
    }[script]
    text = call(tmp_path, script, *overrides, code=2)
    assert "root must be given" in text
    assert len(text.strip().splitlines()) == 1


def test_a_file_of_packing_is_named_without_a_config_key(tmp_path):
    (tmp_path / "x.json").write_text("{")
    options = ["--shard-size", "4", "--annotations", "x.json"]
    text = call(tmp_path, "pack_crops.py", ".", "out", *options, code=2)
    assert "x.json is cut off" in text
    assert "(" not in text
