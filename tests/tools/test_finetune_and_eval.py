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
def tuned(place, pretrained):
    init = f"init_from={pretrained / 'backbone.safetensors'}"
    call(
        place, "finetune.py", *FINETUNE, *TINY, *small_data(place), init, "name=ft", "eval_every=2"
    )
    return place / "runs" / "ft"


def test_finetuning_starts_from_the_backbone_and_validates(tuned):
    rows = scalars(tuned)
    assert [r["step"] for r in rows if "val/mpjpe_mm" in r] == [2, 4]
    saved = torch.load(tuned / "last.pt", weights_only=True)
    assert saved["meta"]["hand"] == "standin_right"


def test_the_labels_that_were_seen_are_listed_and_train_the_same_again(place, tuned, pretrained):
    text = (tuned / "labels.txt").read_text()
    assert text.startswith("# 8 of 16 labels of synthetic-48px-")
    assert "; seed 0\n" in text
    words = [w for w in FINETUNE if not w.startswith("num_labels")]
    words += [*TINY, *small_data(place), f"init_from={pretrained / 'backbone.safetensors'}"]
    words += [
        "name=ft_listed",
        "eval_every=2",
        f"label_ids={tuned / 'labels.txt'}",
        "num_labels=null",
    ]
    call(place, "finetune.py", *words)
    assert _figures(place / "runs" / "ft_listed") == _figures(tuned)


def _figures(run):
    kept = ("loss", "val/")
    return [{k: v for k, v in row.items() if k.startswith(kept)} for row in scalars(run)]


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
    words = [f"checkpoint={tuned_on_freihand}", "predictor=ground_truth", *common, "name=fh_labels"]
    call(place, "eval.py", *words)
    truth = json.loads((place / "runs" / "fh_labels" / "metrics.json").read_text())
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
    assert f"{tuned_on_freihand} was made with hand model" in text
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
