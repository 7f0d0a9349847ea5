import json
from dataclasses import replace
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
import torch

from handmim.hand.io import save_npz
from tests.tools.calls import FINETUNE, METRICS, TINY, call, scalars, small_data


@pytest.fixture(scope="module")
def tuned(workdir, pretrained):
    init = f"init_from={pretrained / 'backbone.safetensors'}"
    call(
        workdir,
        "finetune.py",
        *FINETUNE,
        *TINY,
        *small_data(workdir),
        init,
        "name=ft",
        "eval_every=2",
    )
    return workdir / "runs" / "ft"


def test_finetuning_starts_from_the_backbone_and_validates(tuned):
    rows = scalars(tuned)
    assert [r["step"] for r in rows if "val/mpjpe_mm" in r] == [2, 4]
    saved = torch.load(tuned / "last.pt", weights_only=True)
    assert saved["meta"]["hand"] == "standin_right"


def test_the_labels_that_were_seen_are_listed_and_train_the_same_again(workdir, tuned, pretrained):
    text = (tuned / "labels.txt").read_text()
    assert text.startswith("# 8 of 16 labels of synthetic-48px-")
    assert "; seed 0\n" in text
    overrides = [w for w in FINETUNE if not w.startswith("num_labels")]
    overrides += [*TINY, *small_data(workdir), f"init_from={pretrained / 'backbone.safetensors'}"]
    overrides += [
        "name=ft_listed",
        "eval_every=2",
        f"label_ids={tuned / 'labels.txt'}",
        "num_labels=null",
    ]
    call(workdir, "finetune.py", *overrides)
    assert _figures(workdir / "runs" / "ft_listed") == _figures(tuned)


def _figures(run):
    kept = ("loss", "val/")
    return [{k: v for k, v in row.items() if k.startswith(kept)} for row in scalars(run)]


def test_scores_are_written_with_all_keys(workdir, tuned):
    overrides = [f"checkpoint={tuned / 'last.pt'}", *TINY[:2], f"paths.run_root={workdir / 'runs'}"]
    text = call(workdir, "eval.py", *overrides, "name=ev")
    metrics = json.loads((workdir / "runs" / "ev" / "metrics.json").read_text())
    assert set(metrics) == METRICS
    assert metrics["num_samples"] == 8
    assert "MPJPE" in text
    assert cv2.imread(str(workdir / "runs" / "ev" / "predictions.png")).std() > 10
    call(workdir, "eval.py", *overrides, "name=ev_mean", "predictor=mean_hand")
    mean = json.loads((workdir / "runs" / "ev_mean" / "metrics.json").read_text())
    assert mean["mpjpe_mm"] != metrics["mpjpe_mm"]
    # A perfect predictor scores 0 and full marks, whatever the units: the last validation agrees
    # with the tool.
    last = [r for r in scalars(tuned) if "val/mpjpe_mm" in r][-1]
    assert metrics["mpjpe_mm"] == pytest.approx(last["val/mpjpe_mm"], rel=1e-4)


@pytest.fixture(scope="module")
def tuned_on_freihand(workdir, freihand_tree):
    overrides = ["experiment=cpu_finetune", "data=freihand", f"data.root={freihand_tree}", *TINY]
    overrides += ["trainer.max_steps=3", "trainer.batch_size=4", "data.val_fraction=0.2"]
    overrides += [f"paths.data_dir={workdir / 'data'}", f"paths.run_root={workdir / 'runs'}"]
    call(workdir, "finetune.py", *overrides, "name=fh")
    return workdir / "runs" / "fh" / "last.pt"


def test_freihand_from_training_to_submission_and_back(workdir, tuned_on_freihand, freihand_tree):
    common = [*TINY[:2], f"paths.run_root={workdir / 'runs'}", f"paths.data_dir={workdir / 'data'}"]
    text = call(workdir, "eval.py", f"checkpoint={tuned_on_freihand}", *common, "name=fh_ev")
    folder = workdir / "runs" / "fh_ev"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_samples"] == 8
    assert "the official freihand has 3960" in text
    assert "xyz_al_mean3d: " in (folder / "scores.txt").read_text()
    with ZipFile(folder / "pred.zip") as archive:
        assert archive.namelist() == ["pred.json"]
    overrides = [
        f"predictions={folder / 'pred.json'}",
        "data=freihand",
        f"data.root={freihand_tree}",
    ]
    call(workdir, "eval.py", *overrides, *common, "name=fh_file")
    again = json.loads((workdir / "runs" / "fh_file" / "metrics.json").read_text())
    assert again["official"] == metrics["official"]
    overrides = [
        f"checkpoint={tuned_on_freihand}",
        "predictor=ground_truth",
        *common,
        "name=fh_labels",
    ]
    call(workdir, "eval.py", *overrides)
    truth = json.loads((workdir / "runs" / "fh_labels" / "metrics.json").read_text())
    assert (
        max(truth[k] for k in ("abs_mpjpe_mm", "abs_mpvpe_mm", "pa_mpjpe_mm", "pa_mpvpe_mm")) < 0.01
    )


def test_another_benchmark_than_the_training_set(workdir, tuned_on_freihand, ho3d_v3_tree):
    overrides = [f"checkpoint={tuned_on_freihand}", "data=ho3d_v3", f"data.root={ho3d_v3_tree}"]
    overrides += [
        *TINY[:2],
        f"paths.run_root={workdir / 'runs'}",
        f"paths.data_dir={workdir / 'data'}",
    ]
    call(workdir, "eval.py", *overrides, "data.image_px=64", "name=ho_ev")
    metrics = json.loads((workdir / "runs" / "ho_ev" / "metrics.json").read_text())
    assert metrics["benchmark"] == "ho3d_v3"
    assert "xyz_scale_trans_al_mean3d" in metrics["official"]


def test_the_hand_of_a_checkpoint_cannot_be_swapped(
    workdir, tuned_on_freihand, freihand_tree, hand_arrays
):
    overrides = [f"checkpoint={tuned_on_freihand}", "hand=mano", *TINY[:2], "name=fh_swap"]
    overrides += [f"paths.run_root={workdir / 'runs'}", f"paths.data_dir={workdir / 'data'}"]
    # The same hand as a pickle in the manner of MANO's own is the same hand, under smplx too.
    same = f"hand.path={freihand_tree / 'mano' / 'MANO_RIGHT.pkl'}"
    call(workdir, "eval.py", *overrides, same)
    call(workdir, "eval.py", *overrides, same, "hand=smplx", "overwrite=true")
    moved = [w for w in overrides if w != "hand=mano"]
    call(workdir, "eval.py", *moved, same, "overwrite=true")
    other = workdir / "other.npz"
    save_npz(other, replace(hand_arrays, v_template=hand_arrays.v_template * 1.01))
    text = call(workdir, "eval.py", *overrides, f"hand.path={other}", "overwrite=true", fails=True)
    assert f"{tuned_on_freihand} was made with hand model" in text
    train = ["experiment=cpu_finetune", "data=freihand", f"data.root={freihand_tree}", *TINY]
    train += [f"hand.path={other}", "data.train.hand_path=standin", "data.val.hand_path=standin"]
    train += [f"paths.run_root={workdir / 'runs'}", f"paths.data_dir={workdir / 'data'}"]
    text = call(workdir, "finetune.py", *train, "data.val_fraction=0.2", "name=no", fails=True)
    assert "data.train was made with hand model" in text


def test_two_sources_train_together(workdir, freihand_tree, ho3d_v3_tree):
    overrides = [
        "experiment=cpu_finetune",
        "data=freihand_ho3d",
        f"data.freihand.root={freihand_tree}",
    ]
    overrides += [f"data.ho3d.root={ho3d_v3_tree}", "data.freihand.val_fraction=0.2", *TINY]
    overrides += [
        f"paths.data_dir={workdir / 'data'}",
        f"paths.run_root={workdir / 'runs'}",
        "name=both",
    ]
    text = call(workdir, "finetune.py", *overrides, "trainer.max_steps=2", "trainer.batch_size=8")
    assert "an epoch of" in text
    assert "ho3d: " in text
    last = [r for r in scalars(workdir / "runs" / "both") if "val/mpjpe_mm" in r][-1]
    assert last["val/num_samples"] == 5


def test_either_a_model_or_a_file_is_scored(workdir):
    assert "either checkpoint=FILE.pt or" in call(workdir, "eval.py", "name=x", fails=True)
    text = call(workdir, "eval.py", "predictions=pred.json", "name=x", fails=True)
    assert "needs the benchmark: data=freihand" in text


def test_photos_with_joints_but_no_meshes(workdir):
    folder = workdir / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, notes = [], []
    for i in range(12):
        image = rng.integers(0, 255, (50, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "subject": i // 2})
        joints = rng.normal(0, 0.04, (21, 3))
        keypoints = np.column_stack([25 + 300 * joints[:, :2], np.full(21, 2)]).ravel().tolist()
        side = "left" if i % 3 == 0 else "right"
        note = {"image_id": i, "keypoints": keypoints, "handedness": side}
        notes.append(note | {"keypoints_3d": joints.tolist()})
    (workdir / "notes.json").write_text(json.dumps({"images": images, "annotations": notes}))
    overrides = [
        "experiment=cpu_finetune",
        "data=keypoints",
        "loss=[joints3d,joints2d,prior]",
        f"data.root={folder}",
        *TINY,
        "name=kp",
    ]
    overrides += [
        f"data.annotations={workdir / 'notes.json'}",
        f"paths.run_root={workdir / 'runs'}",
    ]
    call(workdir, "finetune.py", *overrides, "trainer.max_steps=2", "trainer.batch_size=4")
    checkpoint = f"checkpoint={workdir / 'runs' / 'kp' / 'last.pt'}"
    roots = [f"paths.run_root={workdir / 'runs'}", *TINY[:2]]
    call(workdir, "eval.py", checkpoint, *roots, "name=kp_ev")
    metrics = json.loads((workdir / "runs" / "kp_ev" / "metrics.json").read_text())
    assert metrics["num_meshes"] == 0
    assert "pa_mpvpe_mm" not in metrics
    assert metrics["num_2d"] == 4
    assert metrics["num_samples"] == 4


def test_a_share_of_the_labels_and_a_supervised_start(workdir, pretrained):
    overrides = ["experiment=cpu_direct_keypoints", "data=synthetic", *TINY, *small_data(workdir)]
    overrides += ["trainer.max_steps=3", "trainer.batch_size=4", "label_fraction=0.25"]
    init = f"init_from={pretrained / 'backbone.safetensors'}"
    text = call(workdir, "finetune.py", *overrides, init, "name=share")
    assert "4 samples" in text  # a quarter of 16
    again = f"init_from={workdir / 'runs' / 'share' / 'backbone.safetensors'}"
    text = call(workdir, "finetune.py", *overrides, again, "name=on_top")
    assert "left random  mask_token" in text
    text = call(workdir, "finetune.py", *overrides, "num_labels=4", "name=no", fails=True)
    assert "not both" in text


def test_a_pretraining_checkpoint_cannot_be_scored(workdir, pretrained):
    overrides = [f"checkpoint={pretrained / 'last.pt'}", *TINY[:2], "name=no"]
    assert "fine-tune it first" in call(workdir, "eval.py", *overrides, fails=True)
