import json

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from handmim.utils.processes import STOPPED
from tests.tools.calls import FINETUNE, PRETRAIN, TINY, call, scalars, small_data


def test_pretraining_leaves_everything_that_a_run_needs(pretrained):
    facts = json.loads((pretrained / "run.json").read_text())
    assert {"git_sha", "git_dirty"} <= set(facts)
    assert "max_steps: 4" in (pretrained / "config.yaml").read_text()
    assert "seed: 0" in (pretrained / "config.yaml").read_text()
    logged = {key for row in scalars(pretrained) for key in row}
    for key in ("patch_distill", "keypoint_align", "pixel_recon", "view_affine", "class_hog"):
        assert f"loss/{key}" in logged
    assert {"keypoints/spread_ndc", "targets/entropy_of_mean", "features/cls_std"} <= logged
    assert list((pretrained / "tensorboard").glob("events*"))
    for name in ("views", "keypoints", "crop_keypoints", "patch_tokens"):
        drawn = cv2.imread(str(pretrained / "images" / f"step_0000004_{name}.png"))
        assert drawn is not None
        assert drawn.std() > 10
    with safe_open(str(pretrained / "backbone.safetensors"), "pt") as file:
        assert file.metadata()["seed"] == "0"
        assert file.metadata()["step"] == "4"


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(workdir, pretrained):
    overrides = [*PRETRAIN, *TINY, *small_data(workdir), "probe.hook=null", "trainer.image_every=4"]
    text = call(
        workdir, "pretrain.py", *overrides, "name=halves", "trainer.stop_after=2", code=STOPPED
    )
    assert "no backbone.safetensors: the run is not finished" in text
    assert not (workdir / "runs" / "halves" / "backbone.safetensors").exists()
    call(workdir, "pretrain.py", *overrides, "name=halves", "resume=auto")
    whole = torch.load(pretrained / "last.pt", weights_only=True)
    theirs = torch.load(workdir / "runs" / "halves" / "last.pt", weights_only=True)
    assert set(theirs["task"]) == set(whole["task"])
    assert all(torch.equal(theirs["task"][k], whole["task"][k]) for k in whole["task"])


def test_a_finished_run_is_protected_and_ways_out_are_named(workdir, pretrained):
    overrides = [*PRETRAIN, *TINY, *small_data(workdir), "probe.hook=null", "name=pre"]
    text = call(workdir, "pretrain.py", *overrides, fails=True)
    for way in ("resume=auto", "name=", "overwrite=true"):
        assert way in text


def test_unlabeled_folder_end_to_end_with_a_bad_file(workdir):
    crops = workdir / "crops"
    (crops / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        cv2.imwrite(
            str(crops / "sub" / f"{i}.png"), rng.integers(0, 255, (50, 40, 3), dtype=np.uint8)
        )
    (crops / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    overrides = [
        "backbone=vit_nano_p8",
        "data=folder",
        f"data.root={crops}",
        "data.image_px=64",
        "trainer.max_steps=2",
    ]
    overrides += [
        "trainer.batch_size=8",
        "objective=[patch_distill,keypoint_align,pixel_recon]",
        *TINY,
        "name=crops",
    ]
    overrides += ["task.heads.projection.num_prototypes=32", "task.heads.projection.hidden_dim=32"]
    text = call(workdir, "pretrain.py", *overrides, f"paths.run_root={workdir / 'runs'}")
    assert "skipped 1 unreadable of 7 images: torn.jpg" in text
    assert "a batch of 8 is larger than the set of 6 samples" in text
    assert (workdir / "runs" / "crops" / "backbone.safetensors").is_file()
    empty = workdir / "empty"
    empty.mkdir()
    overrides = [w if not w.startswith("data.root") else f"data.root={empty}" for w in overrides]
    text = call(workdir, "pretrain.py", *overrides, "name=none", fails=True)
    assert "no image file" in text
    assert "(data.root)" in text
    (empty / "a.png").write_bytes((crops / "sub" / "0.png").read_bytes())
    text = call(workdir, "pretrain.py", *overrides, "name=one", fails=True)
    assert "pretraining compares images: got 1, needs 2 (data)" in text
    assert "collapse" not in text


def test_targets_are_probed_by_themselves(workdir):
    few = [f"probe.hook.{part}_set.num=40" for part in ("train", "test")]
    overrides = [
        "data=synthetic",
        "probe=synthetic",
        "experiment=cpu_base",
        *small_data(workdir),
        *few,
    ]
    text = call(workdir, "probe_targets.py", *overrides)
    for name in ("mean pose", "grey 24 x 24, 32 numbers", "oriented gradients, 6 x 6 cells, 128"):
        assert name in text
    wrong = call(workdir, "probe_targets.py", "data.root=x", fails=True)
    assert "got probe.hook=null" in wrong


@pytest.mark.slow
def test_two_processes_train_together(workdir):
    two = [*TINY, *small_data(workdir), "machine.devices=2", "machine.strategy=ddp"]
    # Prototypes that are frozen at first must not stop the others.
    call(
        workdir,
        "pretrain.py",
        *PRETRAIN,
        *two,
        "probe.hook=null",
        "name=ddp",
        "task.freeze_prototypes_steps=2",
    )
    facts = json.loads((workdir / "runs" / "ddp" / "run.json").read_text())
    assert facts["world_size"] == 2
    assert (workdir / "runs" / "ddp" / "backbone.safetensors").is_file()
    call(workdir, "finetune.py", *FINETUNE, *two, "name=ddp_ft", "eval_every=4")
    last = [r for r in scalars(workdir / "runs" / "ddp_ft") if "val/mpjpe_mm" in r][-1]
    assert last["step"] == 4
    assert last["val/num_samples"] == 8, "two processes do not count samples twice"
