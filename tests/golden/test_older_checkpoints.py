"""Checkpoints that version 0.1.0 wrote before its parts were rearranged (older/).

Each is of a run stopped half-way: it has to load, to give the numbers it gave then, and to go on as
the run went on then. The overrides are today's names of the settings they were written with.
Renders are framed by another rule since: metrics and losses on them are those of today's renders.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from handmim.engine.checkpoint import load_checkpoint, save_checkpoint
from handmim.evaluation.predictor import HandPredictor
from handmim.hand.conventions import CROP_SCALE
from handmim.images.decode import read_image
from handmim.models.weights.files import read_weights
from handmim.utils.json_files import read_rows
from tests.tools.calls import REPO, call

OLDER = Path(__file__).parent / "older"
EXPECTED = json.loads((OLDER / "expected.json").read_text())
TINY = (
    "backbone=vit_nano_p8", "task.backbone.img_px=32",
    "task.backbone.size={embed_dim:24,depth:2,num_heads:2}",
    "paths.data_dir=data", "paths.run_root=runs", "trainer.batch_size=4", "trainer.num_workers=0",
    "machine.num_threads=1", "trainer.log_every=1", "trainer.image_every=null",
    "trainer.keep_last=1", "resume=auto",
)  # fmt: skip
CROPS = (
    "data=folder", "data.root=crops", "data.image_px=48", "trainer.max_steps=6",
    "trainer.save_every=3", "collapse=null", "probe.hook=null",
)  # fmt: skip
PROJECTION = (
    "task.heads.projection.num_prototypes=32", "task.heads.projection.hidden_dim=16",
    "task.heads.projection.bottleneck_dim=8",
)  # fmt: skip
METHODS = {
    "handmim": (
        *PROJECTION, "task.heads.keypoint.hidden_dim=16", "+task.heads.keypoint.key_dim=8",
        "+task.objectives.keypoint_agree.hidden_dim=16", "+task.objectives.class_hog.hidden_dim=16",
        "task.objectives.class_hog.cells=4", "task.objectives.point_hog.cells=4",
        "+task.objectives.point_hog.hidden_dim=8", "+task.objectives.view_affine.hidden_dim=16",
    ),
    "ibot": PROJECTION,
    "mae": ("task.objectives.pixel_recon.width=16", "task.objectives.pixel_recon.depth=1"),
    "peclr": ("task.heads.keypoint.hidden_dim=16",),
    # Its optimizer has the head of the pixels before the shared one, as no run of today has.
    "pixels_first": ("objective=[pixel_recon,patch_distill]", *PROJECTION),
}  # fmt: skip
RENDERS = (
    "data=synthetic", "data.num_train=16", "data.num_val=6", "data.num_workers=0",
    "data.scene.image_px=48", "trainer.max_steps=4", "trainer.save_every=2", "eval_every=2",
    "augment.img_px=32",
)  # fmt: skip
NARROW = ("task.head.hidden_dim=16",)
HEADS = {
    "pymaf": (
        *NARROW, "task.head.channels=16", "task.head.grid_side=4", "task.head.num_points=12",
        "task.head.point_dims=[16,8,4]", "task.head.cls_dim=16",
    ),
    "plain": NARROW,
    "iterative": NARROW,
    "decoder": ("task.head.width=16", "task.head.num_heads=2", "task.head.num_layers=2"),
    "direct": ("task=keypoints", "loss=[direct_keypoints]"),
}  # fmt: skip
SLOW = pytest.mark.slow


def one_quick(names, quick):
    return [pytest.param(name, marks=() if name == quick else SLOW) for name in names]


@pytest.fixture
def folder(tmp_path):
    """A working folder as the runs had it."""
    shutil.copytree(OLDER / "crops", tmp_path / "crops")
    (tmp_path / "data").mkdir()
    shutil.copy(REPO / "data" / "standin_right.npz", tmp_path / "data")
    return tmp_path


def on_todays_renders(name, path):
    """Write a checkpoint as if it had seen today's renders."""
    saved = load_checkpoint(OLDER / f"{name}.pt")
    for digest in ("data_sha256", "val_sha256"):
        saved["identity"].pop(digest, None)
    for node in (saved["config"]["data"], *saved["config"]["data"].values()):
        if isinstance(node, dict) and "scene" in node:
            node["scene"]["crop_scale"] = CROP_SCALE
    save_checkpoint(path, saved)


def goes_on(folder, name, script, *overrides):
    """Losses of the rest of a run as it goes on from its checkpoint."""
    run = folder / "runs" / name
    run.mkdir(parents=True)
    if name in HEADS:
        on_todays_renders(name, run / "last.pt")
    else:
        shutil.copy(OLDER / f"{name}.pt", run / "last.pt")
    call(folder, script, f"name={name}", *overrides)
    rows = read_rows(run / "scalars.jsonl")
    return [{k: v for k, v in row.items() if k.startswith("loss")} for row in rows]


@pytest.mark.parametrize("name", one_quick(METHODS, "handmim"))
def test_an_older_pretraining_goes_on_as_it_would_have(name, folder):
    method = () if name == "pixels_first" else (f"method={name}",)
    overrides = (*method, *TINY, *CROPS, *METHODS[name])
    losses = goes_on(folder, name, "pretrain.py", *overrides)
    for row, kept in zip(losses, EXPECTED[name]["losses"], strict=True):
        assert row == pytest.approx(kept, rel=1e-4)


@SLOW
def test_an_older_fine_tuning_on_renders_of_another_framing_is_refused(folder):
    run = folder / "runs" / "plain"
    run.mkdir(parents=True)
    shutil.copy(OLDER / "plain.pt", run / "last.pt")
    overrides = ("name=plain", "head=plain", *TINY, *HEADS["plain"], *RENDERS)
    assert "other training data" in call(folder, "finetune.py", *overrides, fails=True)


@SLOW
@pytest.mark.parametrize("name", HEADS)
def test_an_older_fine_tuning_goes_on_as_it_would_have(name, folder):
    overrides = (f"head={name}", *TINY, *HEADS[name], *RENDERS)
    losses = goes_on(folder, name, "finetune.py", *overrides)
    for row, kept in zip(losses, EXPECTED[name]["losses"], strict=True):
        assert row == pytest.approx(kept, rel=1e-4)


@pytest.mark.parametrize("name", one_quick(HEADS, "pymaf"))
def test_an_older_model_has_the_metrics_it_had(name, folder):
    call(folder, "eval.py", f"checkpoint={OLDER / name}.pt", "paths.run_root=runs")
    metrics = json.loads((folder / "runs" / "eval" / "metrics.json").read_text())
    assert metrics == pytest.approx(EXPECTED[name]["metrics"], rel=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_an_older_model_predicts_what_it_predicted(name):
    files = sorted((OLDER / "crops").glob("*.png"))[:3]
    crops = np.stack([read_image(file) for file in files])
    joints = HandPredictor.from_checkpoint(OLDER / f"{name}.pt", device="cpu")(crops).joints_root_m
    assert joints[0] == pytest.approx(np.array(EXPECTED[name]["joints_root_m"]), abs=1e-5)


@SLOW
@pytest.mark.parametrize("name", [*METHODS, "pymaf"])
def test_an_older_backbone_starts_a_fine_tuning(name, folder):
    weights = OLDER / f"{name}.pt"
    overrides = (*TINY, *RENDERS, "head=plain", "resume=never", "trainer.max_steps=1")
    text = call(folder, "finetune.py", f"init_from={weights}", *overrides)
    assert "initial weights" in text


def test_an_older_exported_backbone_is_read():
    exported = read_weights(str(OLDER / "backbone.safetensors"))
    assert len(exported.tensors) == 30
