import json

import cv2
import numpy as np
import pytest
import torch

from handmim.data.augment import HandAugment
from handmim.data.keypoints import KeypointPhotos
from handmim.data.synthetic import SyntheticHands
from handmim.diagnostics.probe import ProbeHook
from handmim.types import StepInfo
from handmim.utils.run import Run
from tests.tasks.relabelled import Relabelled
from tests.tasks.test_pretrain_task import make_task

SCENE = {"image_px": 40, "view": "cone", "background": "studio", "objects": 0.0, "occluders": 0.0}


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_path):
    folder = tmp_path_factory.mktemp("c")
    return [
        SyntheticHands(hand_path, s, 12, folder, SCENE, num_workers=0) for s in ("train", "val")
    ]


@pytest.fixture
def run(tmp_path):
    return Run.start("probe", tmp_path, 0, {}, accelerator="cpu")


@pytest.fixture
def probe(run):
    def call(train, test, task=None, **kwargs):
        hook = ProbeHook(train, test, HandAugment(img_px=32), **kwargs)
        task = task or make_task().eval()
        with torch.no_grad():
            return hook(task, StepInfo(0, 1), run)

    return call


RIDGE = {"err2d_percent", "pck10", "mpjpe_mm", "pa_mpjpe_mm"}
KNN = {"err2d_percent", "pck10", "pa_mpjpe_mm"}


def test_metrics_in_2d_and_3d_of_all_features(probe, hands):
    metrics = probe(*hands)
    expected = {f"probe/{name}" for name in RIDGE} | {"features/cls_rank"}
    for part in ("cls_patch", "points", "mean_pose"):
        expected |= {f"probe/{part}/{name}" for name in RIDGE}
    for part in ("knn1", "knn10"):
        expected |= {f"probe/{part}/{name}" for name in KNN}
    assert set(metrics) == expected
    assert all(np.isfinite(v) for v in metrics.values())
    assert 0 < metrics["probe/err2d_percent"] < 50


def test_features_and_neighbours_are_chosen_and_points_may_be_missing(probe, hands):
    metrics = probe(*hands, task=make_task(("pixel_recon",)).eval(), neighbours=())
    parts = {k.split("/")[1] for k in metrics if k.startswith("probe/")} - RIDGE
    assert parts == {"cls_patch", "mean_pose"}
    few = probe(*hands, features=["points"], neighbours=[3])
    parts = {k.split("/")[1] for k in few if k.startswith("probe/")}
    assert parts == {"points", "mean_pose", "knn3"}
    with pytest.raises(ValueError, match="features must be"):
        probe(*hands, features=["tokens"])
    with pytest.raises(ValueError, match=r"20 neighbours from 12"):
        probe(*hands, neighbours=[20])


class Sorted(Relabelled):
    """Two classes by turns."""

    def class_of(self, index):
        return index % 2


def test_the_vote_is_counted_where_classes_exist(probe, hands):
    metrics = probe(*(Sorted(h) for h in hands))
    assert 0 <= metrics["probe/knn10/class_accuracy"] <= 1
    same = probe(Sorted(hands[0]), Sorted(hands[0]))
    assert same["probe/knn1/class_accuracy"] == 1.0, "every crop is its own nearest neighbour"
    assert same["probe/knn1/pa_mpjpe_mm"] == pytest.approx(0.0, abs=1e-3)
    assert "probe/knn10/class_accuracy" not in probe(Sorted(hands[0]), hands[1])


def test_annotated_photos_know_their_class_where_there_are_several(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    notes = [{"image_id": 1, "keypoints": [1.0, 2.0, 2] * 21, "category_id": c} for c in (4, 7)]
    path = tmp_path / "notes.json"
    for chosen, classes in ((notes, [4, 7]), (notes[:1], [None])):
        images = [{"id": 1, "file_name": "a.png"}]
        path.write_text(json.dumps({"images": images, "annotations": chosen}))
        photos = KeypointPhotos(tmp_path, path, split="all")
        assert [photos.class_of(i) for i in range(len(photos))] == classes


def test_images_of_neighbours_and_points(run, hands):
    hook = ProbeHook(*hands, HandAugment(img_px=32))
    sheets = hook.images(make_task().eval(), run)
    assert set(sheets) == {"probe_neighbours", "probe_keypoints"}
    assert all(p.dtype.name == "uint8" and p.std() > 5 for p in sheets.values())
    assert set(hook.images(make_task(("pixel_recon",)).eval(), run)) == {"probe_neighbours"}


def test_photos_without_3d_are_probed_in_2d(probe, hands):
    flat = [Relabelled(h, joints_valid=np.zeros(21, bool)) for h in hands]
    metrics = probe(*flat)
    assert "probe/err2d_percent" in metrics
    assert "probe/mpjpe_mm" not in metrics


def test_too_few_whole_samples_are_refused_with_their_number(probe, hands):
    torn = Relabelled(hands[0], kp2d_valid=np.arange(21) != 4)
    with pytest.raises(ValueError, match="only 0 of 12 samples have all 21 joints in 2D"):
        probe(torn, hands[1])
