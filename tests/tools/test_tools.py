"""The entry points as a user calls them, on tiny rendered sets: one process each, real files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from handmim.hand.files import save_npz

REPO = Path(__file__).parents[2]
METRICS = {
    "pa_mpjpe_mm", "pa_mpvpe_mm", "mpjpe_mm", "mpvpe_mm", "pa_f5", "pa_f15", "f5", "f15",
    "pa_auc_joints", "pa_auc_verts", "auc_joints", "auc_verts", "num_samples", "num_meshes",
    "err2d_percent", "num_2d", "pck10",
}  # fmt: skip
METHODS_MEASURED = ("mae", "handmim")
TINY = ["machine.accelerator=cpu", "machine.num_threads=1", "trainer.num_workers=0"]
PRETRAIN = [
    "experiment=quickstart_pretrain",
    "trainer.max_steps=4",
    "trainer.batch_size=4",
    "trainer.save_every=2",
]
FINETUNE = [
    "experiment=quickstart_finetune",
    "trainer.max_steps=4",
    "trainer.batch_size=4",
    "num_labels=8",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, hand_path):
    """A working folder with the hand model and a small cache, shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").mkdir()
    (folder / "data" / hand_path.name).write_bytes(hand_path.read_bytes())
    return folder


def small_data(folder: Path) -> list[str]:
    return [
        "data.num_train=16", "data.num_val=8", "data.num_workers=0", "data.scene.image_px=48",
        f"paths.data_dir={folder / 'data'}", f"paths.run_root={folder / 'runs'}", "hydra.run.dir=.",
    ]  # fmt: skip


def call(folder: Path, script: str, *words: str, fails: bool = False) -> str:
    command = [sys.executable, str(REPO / "tools" / script), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    text = done.stdout + done.stderr
    assert (done.returncode != 0) is fails, text[-3000:]
    return text


@pytest.fixture(scope="module")
def pretrained(place):
    words = [
        *PRETRAIN,
        *TINY,
        *small_data(place),
        "probe=none",
        "name=pre",
        "trainer.picture_every=4",
    ]
    call(place, "pretrain.py", *words)
    return place / "runs" / "pre"


@pytest.fixture(scope="module")
def tuned(place, pretrained):
    init = f"init_from={pretrained / 'backbone.safetensors'}"
    call(
        place, "finetune.py", *FINETUNE, *TINY, *small_data(place), init, "name=ft", "eval_every=2"
    )
    return place / "runs" / "ft"


def scalars(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]


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
        picture = cv2.imread(str(pretrained / "pictures" / f"step_0000004_{name}.png"))
        assert picture is not None
        assert picture.std() > 10
    with safe_open(str(pretrained / "backbone.safetensors"), "pt") as file:
        assert file.metadata()["seed"] == "0"
        assert file.metadata()["step"] == "4"


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(place, pretrained):
    words = [*PRETRAIN, *TINY, *small_data(place), "probe=none", "trainer.picture_every=4"]
    call(place, "pretrain.py", *words, "name=halves", "trainer.stop_after=2")
    with safe_open(str(place / "runs" / "halves" / "backbone.safetensors"), "pt") as file:
        assert file.metadata()["step"] == "2"
    call(place, "pretrain.py", *words, "name=halves", "resume=auto")
    whole = torch.load(pretrained / "last.pt", weights_only=True)
    theirs = torch.load(place / "runs" / "halves" / "last.pt", weights_only=True)
    assert set(theirs["task"]) == set(whole["task"])
    assert all(torch.equal(theirs["task"][k], whole["task"][k]) for k in whole["task"])


def test_a_finished_run_is_protected_and_ways_out_are_named(place, pretrained):
    words = [*PRETRAIN, *TINY, *small_data(place), "probe=none", "name=pre"]
    text = call(place, "pretrain.py", *words, fails=True)
    for way in ("resume=auto", "name=", "overwrite=true"):
        assert way in text


def test_finetuning_starts_from_the_backbone_and_validates(tuned):
    rows = scalars(tuned)
    assert [r["step"] for r in rows if "val/mpjpe_mm" in r] == [2, 4]
    saved = torch.load(tuned / "last.pt", weights_only=True)
    assert saved["meta"]["hand"] == "standin_right"


def test_scores_are_written_with_all_keys(place, tuned):
    words = [f"checkpoint={tuned / 'last.pt'}", *TINY[:2], f"paths.run_root={place / 'runs'}"]
    text = call(place, "eval.py", *words, "name=ev")
    metrics = json.loads((place / "runs" / "ev" / "metrics.json").read_text())
    assert set(metrics) == METRICS
    assert metrics["num_samples"] == 8
    assert "MPJPE" in text
    assert cv2.imread(str(place / "runs" / "ev" / "predictions.png")).std() > 10
    call(place, "eval.py", *words, "name=ev_mean", "predictor=mean_hand")
    mean = json.loads((place / "runs" / "ev_mean" / "metrics.json").read_text())
    assert mean["mpjpe_mm"] != metrics["mpjpe_mm"]
    # A perfect predictor scores 0 and full marks, whatever the units: the last validation agrees
    # with the tool.
    last = [r for r in scalars(tuned) if "val/mpjpe_mm" in r][-1]
    assert metrics["mpjpe_mm"] == pytest.approx(last["val/mpjpe_mm"], rel=1e-4)


@pytest.fixture(scope="module")
def tuned_on_freihand(place, freihand_tree):
    words = ["experiment=cpu_finetune", "data=freihand", f"data.root={freihand_tree}", *TINY]
    words += ["trainer.max_steps=3", "trainer.batch_size=4", "data.val_fraction=0.2"]
    words += [f"paths.data_dir={place / 'data'}", f"paths.run_root={place / 'runs'}"]
    call(place, "finetune.py", *words, "name=fh")
    return place / "runs" / "fh" / "last.pt"


def test_freihand_from_training_to_submission_and_back(place, tuned_on_freihand, freihand_tree):
    common = [*TINY[:2], f"paths.run_root={place / 'runs'}", f"paths.data_dir={place / 'data'}"]
    text = call(place, "eval.py", f"checkpoint={tuned_on_freihand}", *common, "name=fh_ev")
    folder = place / "runs" / "fh_ev"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_samples"] == 8
    assert "the official freihand has 3960" in text
    assert "xyz_al_mean3d: " in (folder / "scores.txt").read_text()
    with ZipFile(folder / "pred.zip") as archive:
        assert archive.namelist() == ["pred.json"]
    words = [f"predictions={folder / 'pred.json'}", "data=freihand", f"data.root={freihand_tree}"]
    call(place, "eval.py", *words, *common, "name=fh_file")
    again = json.loads((place / "runs" / "fh_file" / "metrics.json").read_text())
    assert again["official"] == metrics["official"]
    words = [f"checkpoint={tuned_on_freihand}", "predictor=truth", *common, "name=fh_truth"]
    call(place, "eval.py", *words)
    truth = json.loads((place / "runs" / "fh_truth" / "metrics.json").read_text())
    assert (
        max(truth[k] for k in ("abs_mpjpe_mm", "abs_mpvpe_mm", "pa_mpjpe_mm", "pa_mpvpe_mm")) < 0.01
    )


def test_another_benchmark_than_the_training_set(place, tuned_on_freihand, ho3d_v3_tree):
    words = [f"checkpoint={tuned_on_freihand}", "data=ho3d_v3", f"data.root={ho3d_v3_tree}"]
    words += [*TINY[:2], f"paths.run_root={place / 'runs'}", f"paths.data_dir={place / 'data'}"]
    call(place, "eval.py", *words, "data.image_px=64", "name=ho_ev")
    metrics = json.loads((place / "runs" / "ho_ev" / "metrics.json").read_text())
    assert metrics["benchmark"] == "ho3d_v3"
    assert "xyz_scale_trans_al_mean3d" in metrics["official"]


def test_the_hand_of_a_checkpoint_cannot_be_swapped(
    place, tuned_on_freihand, freihand_tree, hand_arrays
):
    words = [f"checkpoint={tuned_on_freihand}", "hand=mano", *TINY[:2], "name=fh_swap"]
    words += [f"paths.run_root={place / 'runs'}", f"paths.data_dir={place / 'data'}"]
    # The same hand as a pickle in the manner of MANO's own is the same hand, under smplx too.
    same = f"hand.path={freihand_tree / 'mano' / 'MANO_RIGHT.pkl'}"
    call(place, "eval.py", *words, same)
    call(place, "eval.py", *words, same, "hand=smplx", "overwrite=true")
    moved = [w for w in words if w != "hand=mano"]
    call(place, "eval.py", *moved, same, "overwrite=true")
    other = place / "other.npz"
    save_npz(other, replace(hand_arrays, v_template=hand_arrays.v_template * 1.01))
    text = call(place, "eval.py", *words, f"hand.path={other}", "overwrite=true", fails=True)
    assert "was rendered from hand" in text
    train = ["experiment=cpu_finetune", "data=freihand", f"data.root={freihand_tree}", *TINY]
    train += [f"hand.path={other}", "data.train.hand_path=standin", "data.val.hand_path=standin"]
    train += [f"paths.run_root={place / 'runs'}", f"paths.data_dir={place / 'data'}"]
    text = call(place, "finetune.py", *train, "data.val_fraction=0.2", "name=no", fails=True)
    assert "data.train was made with hand model" in text


def test_two_sources_train_together(place, freihand_tree, ho3d_v3_tree):
    words = ["experiment=cpu_finetune", "data=freihand_ho3d", f"data.freihand.root={freihand_tree}"]
    words += [f"data.ho3d.root={ho3d_v3_tree}", "data.freihand.val_fraction=0.2", *TINY]
    words += [f"paths.data_dir={place / 'data'}", f"paths.run_root={place / 'runs'}", "name=both"]
    text = call(place, "finetune.py", *words, "trainer.max_steps=2", "trainer.batch_size=8")
    assert "an epoch of" in text
    assert "ho3d: " in text
    last = [r for r in scalars(place / "runs" / "both") if "val/mpjpe_mm" in r][-1]
    assert last["val/num_samples"] == 5


def test_either_a_model_or_a_file_is_scored(place):
    assert "either checkpoint=FILE.pt or" in call(place, "eval.py", "name=x", fails=True)
    text = call(place, "eval.py", "predictions=pred.json", "name=x", fails=True)
    assert "needs the benchmark: data=freihand" in text


def test_photos_with_joints_but_no_meshes(place):
    folder = place / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, notes = [], []
    for i in range(12):
        picture = rng.integers(0, 255, (50, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "subject": i // 2})
        joints = rng.normal(0, 0.04, (21, 3))
        keypoints = np.column_stack([25 + 300 * joints[:, :2], np.full(21, 2)]).ravel().tolist()
        side = "left" if i % 3 == 0 else "right"
        note = {"image_id": i, "keypoints": keypoints, "handedness": side}
        notes.append(note | {"keypoints_3d": joints.tolist()})
    (place / "notes.json").write_text(json.dumps({"images": images, "annotations": notes}))
    words = ["experiment=cpu_keypoints_finetune", f"data.root={folder}", *TINY, "name=kp"]
    words += [f"data.annotations={place / 'notes.json'}", f"paths.run_root={place / 'runs'}"]
    call(place, "finetune.py", *words, "trainer.max_steps=2", "trainer.batch_size=4")
    checkpoint = f"checkpoint={place / 'runs' / 'kp' / 'last.pt'}"
    roots = [f"paths.run_root={place / 'runs'}", *TINY[:2]]
    call(place, "eval.py", checkpoint, *roots, "name=kp_ev")
    metrics = json.loads((place / "runs" / "kp_ev" / "metrics.json").read_text())
    assert metrics["num_meshes"] == 0
    assert "pa_mpvpe_mm" not in metrics
    assert metrics["num_2d"] == 4
    assert metrics["num_samples"] == 4


def test_a_share_of_the_labels_and_a_supervised_start(place, pretrained):
    words = ["experiment=cpu_direct_keypoints", "data=synthetic", *TINY, *small_data(place)]
    words += ["trainer.max_steps=3", "trainer.batch_size=4", "label_fraction=0.25"]
    init = f"init_from={pretrained / 'backbone.safetensors'}"
    text = call(place, "finetune.py", *words, init, "name=share")
    assert "4 samples" in text  # a quarter of 16
    again = f"init_from={place / 'runs' / 'share' / 'backbone.safetensors'}"
    text = call(place, "finetune.py", *words, again, "name=on_top")
    assert "left random  mask_token" in text
    text = call(place, "finetune.py", *words, "num_labels=4", "name=no", fails=True)
    assert "not both" in text


def test_a_pretraining_checkpoint_cannot_be_scored(place, pretrained):
    words = [f"checkpoint={pretrained / 'last.pt'}", *TINY[:2], "name=no"]
    assert "fine-tune it first" in call(place, "eval.py", *words, fails=True)


def test_unlabeled_folder_end_to_end_with_a_bad_file(place):
    crops = place / "crops"
    (crops / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        cv2.imwrite(
            str(crops / "sub" / f"{i}.png"), rng.integers(0, 255, (50, 40, 3), dtype=np.uint8)
        )
    (crops / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    words = [
        "backbone=vit_nano_p8",
        "data=folder",
        f"data.root={crops}",
        "data.image_px=64",
        "trainer.max_steps=2",
    ]
    words += [
        "trainer.batch_size=4",
        "loss=[patch_distill,keypoint_align,pixel_recon]",
        *TINY,
        "name=crops",
    ]
    words += ["task.heads.projection.num_prototypes=32", "task.heads.projection.hidden_dim=32"]
    text = call(place, "pretrain.py", *words, f"paths.run_root={place / 'runs'}")
    assert "skipped 1 unreadable of 7 pictures: torn.jpg" in text
    assert (place / "runs" / "crops" / "backbone.safetensors").is_file()
    empty = place / "empty"
    empty.mkdir()
    words = [w if not w.startswith("data.root") else f"data.root={empty}" for w in words]
    text = call(place, "pretrain.py", *words, "name=none", fails=True)
    assert "picture below" in text
    assert "data.root=DIR" in text


ABLATE = [
    "table=objectives",
    "budget=smoke",
    "seeds=1",
    "rows=[random,class_recon]",
    "machine.accelerator=cpu",
    "machine.num_threads=1",
    'pretrain=["probe.hook.train_set.num=16","data.num_val=8","data.num_train=16",'
    '"data.num_workers=0","data.scene.image_px=48"]',
    'finetune=["data.num_val=8","data.num_train=16","data.num_workers=0","data.scene.image_px=48"]',
]


def test_an_ablation_says_what_it_would_run_and_what_it_does_not_know(place):
    words = [*ABLATE, f"paths.data_dir={place / 'data'}", f"paths.run_root={place / 'abl'}"]
    text = call(place, "ablate.py", *words, "dry_run=true")
    assert "class_recon/0" in text
    assert "pretrain 4, finetune_50 3, finetune_100 3" in text
    assert "2 of 2 cells to run, 16 steps" in text
    assert not (place / "abl").exists()
    words[3] = "rows=[nope]"
    text = call(place, "ablate.py", *words, fails=True)
    assert "no rows ['nope'] in this table, it has ['random'" in text
    text = call(place, "ablate.py", "table=nope", fails=True)
    assert "objectives" in text
    text = call(place, "ablate.py", "--help")
    assert "table: articulation, controls" in text
    assert "finished cells are kept" in text


@pytest.mark.slow
def test_an_ablation_fills_its_table_and_runs_nothing_twice(place):
    words = [*ABLATE, f"paths.data_dir={place / 'data'}", f"paths.run_root={place / 'abl'}"]
    text = call(place, "ablate.py", *words, f"out={place / 'docs'}")
    folder = place / "abl" / "ablations" / "objectives-renders-smoke"
    cells = json.loads((folder / "cells.json").read_text())
    assert {cell["row"] for cell in cells} == {"random", "class_recon"}
    keys = {"probe/err2d_percent", "finetune_50/mpjpe_mm", "finetune_100/pa_mpjpe_mm"}
    assert all(keys <= set(cell["figures"]) for cell in cells)
    assert all(cell["stages"]["probe"]["threads"] == 1 for cell in cells)
    assert "| random init | 1 |" in text
    assert (folder.parent / "multirun.yaml").is_file()
    assert not (place / "multirun.yaml").exists()
    names = {p.name for p in (place / "docs").iterdir()}
    assert names == {f"objectives-renders-smoke.{end}" for end in ("md", "csv", "png", "json")}
    written = (folder / "random" / "seed_0" / "cell.json").stat().st_mtime_ns
    call(place, "ablate.py", *words, "jobs=2")
    assert (folder / "random" / "seed_0" / "cell.json").stat().st_mtime_ns == written
    # The same rows in processes of their own, with nothing left but the stages: none runs again.
    stages = sorted((place / "abl" / "ablations" / "stages").glob("*/stage.json"))
    assert len(stages) == 1 + 2 + 4
    call(place, "ablate.py", *words, "jobs=2", "name=again")
    assert sorted((place / "abl" / "ablations" / "stages").glob("*/stage.json")) == stages
    again = json.loads((place / "abl" / "ablations" / "again" / "cells.json").read_text())
    assert [cell["figures"] for cell in again] == [cell["figures"] for cell in cells]


def test_targets_are_probed_by_themselves(place):
    few = [f"probe.hook.{part}_set.num=40" for part in ("train", "test")]
    words = ["data=synthetic", "probe=synthetic", "experiment=cpu_base", *small_data(place), *few]
    text = call(place, "probe_targets.py", *words)
    for name in ("mean pose", "grey 24 x 24, 32 numbers", "oriented gradients, 6 x 6 cells, 128"):
        assert name in text
    wrong = call(place, "probe_targets.py", "data.root=x", fails=True)
    assert "got probe=none" in wrong


@pytest.mark.slow
def test_two_processes_train_together(place):
    two = [*TINY, *small_data(place), "machine.devices=2", "machine.strategy=ddp"]
    # Prototypes that are frozen at first must not stop the others.
    call(
        place,
        "pretrain.py",
        *PRETRAIN,
        *two,
        "probe=none",
        "name=ddp",
        "task.freeze_prototypes_steps=2",
    )
    facts = json.loads((place / "runs" / "ddp" / "run.json").read_text())
    assert facts["world_size"] == 2
    assert (place / "runs" / "ddp" / "backbone.safetensors").is_file()
    call(place, "finetune.py", *FINETUNE, *two, "name=ddp_ft", "eval_every=4")
    last = [r for r in scalars(place / "runs" / "ddp_ft") if "val/mpjpe_mm" in r][-1]
    assert last["step"] == 4
    assert last["val/num_samples"] == 8, "two processes do not count samples twice"


def test_quickstart_runs_every_stage_and_reports(place):
    words = ["--name", "qs", "--seed", "3", *TINY, *small_data(place), "num_labels=8"]
    words = [w for w in words if not w.startswith("num_labels")]
    stages = ["trainer.max_steps=2", "trainer.batch_size=4", "data.num_train=1600"]
    text = call(place, "quickstart.py", *words, *stages, "data.num_val=8")
    rows = json.loads((place / "runs" / "qs" / "summary.json").read_text())
    assert [r["name"] for r in rows] == ["mean_hand", "scratch", "handmim"]
    for row in rows:
        assert set(row) >= METRICS | {"seconds", "total_seconds", "seed"}
        assert row["seed"] == 3
    assert rows[0]["total_seconds"] > rows[2]["seconds"] > rows[1]["seconds"] > 0
    page = (place / "runs" / "qs" / "report.html").read_text()
    assert page.count("data:image/") >= 6
    assert "no picture" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "not at equal total compute" in text
    assert f"{rows[2]['mpjpe_mm']:.2f}" in page


def test_methods_are_measured_by_the_first(place):
    words = ["experiment=cpu_base", "trainer.batch_size=2", *TINY]
    text = call(place, "benchmark_methods.py", "--steps=1", "--methods=mae,handmim", *words)
    (mae,), (handmim,) = ([r for r in text.splitlines() if f" {m} " in r] for m in METHODS_MEASURED)
    assert "1.00" in mae
    assert float(handmim.split("│")[3]) > 1.0
