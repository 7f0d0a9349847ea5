"""A fine-tuned model as one small file."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import handmim
from handmim.engine.checkpoint import load_checkpoint
from handmim.evaluation.model_file import KEY, read_model, write_model
from handmim.pipelines.average import average_backbones
from handmim.pipelines.export import export
from tests.tools.calls import FINETUNE, TINY, call, small_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    average = ["task.average={decay: 0.5, warmup: false}", "name=t"]
    call(folder, "finetune.py", *FINETUNE, *TINY, *small_data(folder), *average)
    return folder / "runs" / "t" / "last.pt"


@pytest.fixture(scope="module")
def exported(trained):
    path = trained.with_name("hand.safetensors")
    export(trained, path)
    return path


def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (5, 48, 48, 3), dtype=np.uint8)


def test_it_predicts_what_the_checkpoint_predicts(trained, exported):
    there, here = (handmim.load(path)(crops()) for path in (trained, exported))
    difference = np.linalg.norm(there.verts_root_m - here.verts_root_m, axis=2)
    assert 0 < difference.max() < 2e-4  # half precision
    assert exported.stat().st_size < trained.stat().st_size / 5


def test_it_holds_averaged_weights_and_no_path_of_the_run(trained, exported):
    with safe_open(exported, "pt") as file:
        facts = json.loads(file.metadata()[KEY])
    assert facts["config"]["task"]["average"] is None
    assert facts["config"]["hand"]["path"] == "standin"
    assert str(trained.parent) not in json.dumps(facts)
    averaged = load_checkpoint(trained)["task"]["averaged.net.backbone.net.norm.weight"]
    assert torch.equal(read_model(exported)["task"]["backbone.net.norm.weight"], averaged)


def test_other_files_are_refused(trained, exported, tmp_path):
    backbone = trained.with_name("backbone.safetensors")
    for path in (backbone, tmp_path / "plain.safetensors"):
        if path != backbone:
            save_file({"x": torch.zeros(2)}, path, {KEY: "[]"})
        with pytest.raises(ValueError, match=r"holds no fine-tuned model: .*export"):
            handmim.load(path)
    content = read_model(exported)
    content["config"]["task"]["backbone"]["_target_"] = "os.system"
    write_model(content, tmp_path / "hostile.safetensors")
    with pytest.raises(ValueError, match=r"os\.system"):
        handmim.load(tmp_path / "hostile.safetensors")
    with pytest.raises(ValueError, match=r"is an exported model: average checkpoints"):
        average_backbones([str(exported)] * 2, [0.5, 0.5], tmp_path / "mean.safetensors")
    damaged = bytearray(exported.read_bytes())
    damaged[-9] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        handmim.load(tmp_path / "damaged.safetensors")
