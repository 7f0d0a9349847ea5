import json
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from handmim.data.augment import HandAugment
from handmim.data.keypoints import KeypointPhotos
from handmim.data.loader import collate_hands
from handmim.data.samples import hand_sample, mirror_sample
from handmim.engine.log import draw
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.scoring import score
from handmim.geometry.camera import fit_weak
from handmim.losses.hand import JointLoss, JointLoss2D
from handmim.models.heads.direct import DirectHead, KeypointOutputs, KeypointState
from handmim.models.vit import ViT
from handmim.tasks.regression import (
    KeypointRegressionTask,
    evaluation_crops,
    mean_joints,
    mean_scale,
)
from handmim.types import HandBatch, StepInfo, Task
from handmim.utils.files import UnreadableSample
from tests.tasks.relabelled import Relabelled

CPU = torch.device("cpu")
NONE = np.zeros(21, bool)


def photo(i: int):
    """A bright patch says where the hand is and so what its joints are."""
    rng = np.random.default_rng([7, i])
    shape = np.random.default_rng(0).normal(0, 0.03, (21, 3))
    place = rng.uniform(10, 30, 2)
    image = rng.integers(0, 60, (40, 40, 3), np.uint8)
    x, y = place.astype(int)
    image[y - 6 : y + 6, x - 6 : x + 6] = 220
    stretch = 1 + place[0] / 40
    return hand_sample(
        image,
        f"{i}",
        kp2d_crop_px=place + shape[:, :2] * 60,
        joints_cam_m=shape * stretch + [0.1, 0.2, 0.6],
    )


@pytest.fixture(scope="module")
def photos():
    return [photo(i) for i in range(16)]


@pytest.fixture(scope="module")
def augment():
    return HandAugment(img_px=32, scale=(0.95, 1.05), rotation_deg=10.0)


def build(losses=None, dim=24, head=None, **options) -> KeypointRegressionTask:
    torch.manual_seed(0)
    size = {"embed_dim": dim, "depth": 1, "num_heads": 2}
    backbone = ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, pixel_norm="per_image", size=size)
    own = {
        "direct3d": JointLoss(root_joint=9, unit_m=0.1, beta=0.1),
        "direct2d": JointLoss2D(beta=0.1),
    }
    return KeypointRegressionTask(
        backbone, partial(DirectHead, **(head or {})), losses or own, **options
    )


def whole_batch(photos) -> HandBatch:
    return collate_hands(photos)


def state(batch: HandBatch, off_m=0.0, off_ndc=0.0) -> KeypointOutputs:
    root = batch.joints_cam_m[:, 9, None]
    far = KeypointState(batch.joints_cam_m + 9.0, batch.kp2d_crop_ndc + 9.0)
    estimate = KeypointState(batch.joints_cam_m - root + off_m, batch.kp2d_crop_ndc + off_ndc)
    return KeypointOutputs((far, estimate))


def test_losses_by_hand_and_the_mean_is_not_scored(photos):
    batch = whole_batch(photos)
    in_3d, in_2d = JointLoss(root_joint=9, unit_m=0.1, beta=0.1), JointLoss2D(beta=0.1)
    assert in_3d(state(batch), batch).item() == pytest.approx(0.0, abs=1e-9)
    # 5 mm = 0.05 units < beta: 0.05^2 / 0.2; 30 mm = 0.3 units: 0.3 - 0.05
    assert in_3d(state(batch, 0.005), batch).item() == pytest.approx(0.0125, rel=1e-3)
    assert in_3d(state(batch, 0.03), batch).item() == pytest.approx(0.25, rel=1e-3)
    assert in_2d(state(batch, 0.0, 0.02), batch).item() == pytest.approx(0.002, rel=1e-3)
    assert in_2d(state(batch, 0.0, 0.5), batch).item() == pytest.approx(0.45, rel=1e-3)


@pytest.mark.parametrize(
    "term", [JointLoss(root_joint=9, unit_m=0.1, beta=0.1), JointLoss2D(beta=0.1)]
)
def test_reduction_is_that_of_the_other_regression_losses(photos, term):
    both = whole_batch(photos[:4])
    mask = torch.ones(4, 21, dtype=torch.bool)
    mask[2:] = False  # two samples without labels count 0, and nothing that stands there counts
    mask[0, 3:] = True
    mask[1, :5] = False
    garbage = torch.where(mask[..., None], both.kp2d_crop_ndc, 1e4)
    b = both._replace(kp2d_valid=mask, joints_valid=mask, kp2d_crop_ndc=garbage)
    out = state(both, 0.2, 0.2)  # the same error of every coordinate: 0.2 ndc, 2 units
    one = term(KeypointOutputs(out.steps), both).item()
    assert term(out, b).item() == pytest.approx(one / 2, rel=1e-5)
    # as masked L1 where errors are large: L1 minus beta / 2
    l1 = JointLoss2D() if isinstance(term, JointLoss2D) else JointLoss(root_joint=9)
    unit = 1.0 if isinstance(term, JointLoss2D) else 0.1
    assert one == pytest.approx(l1(out, both).item() / unit - 0.05, rel=1e-4)


def test_3d_without_the_root_teaches_nothing(photos):
    batch = whole_batch(photos[:2])
    valid = batch.joints_valid.clone()
    valid[:, 9] = False
    loss = JointLoss(root_joint=9)(state(batch, 0.1), batch._replace(joints_valid=valid))
    assert loss.item() == 0.0


def test_the_mean_is_joint_by_joint_over_what_is_labelled(photos, augment):
    batch = augment.evaluate(whole_batch(photos))
    in_3d, in_2d = mean_joints(evaluation_crops(photos, augment, batch_size=5))
    root = batch.joints_cam_m[:, 9, None]
    torch.testing.assert_close(in_3d, (batch.joints_cam_m - root).mean(dim=0))
    torch.testing.assert_close(in_2d, batch.kp2d_crop_ndc.mean(dim=0))
    seen = np.ones(21, bool)
    seen[4] = False
    part = [Relabelled(photos, kp2d_valid=seen)[0], *photos[1:]]
    _, without = mean_joints(evaluation_crops(part, augment))
    torch.testing.assert_close(without[4], batch.kp2d_crop_ndc[1:, 4].mean(dim=0))
    torch.testing.assert_close(without[5], in_2d[5])
    flat, same = mean_joints(evaluation_crops(Relabelled(photos, joints_valid=NONE), augment))
    assert flat.abs().max() == 0
    torch.testing.assert_close(same, in_2d)
    with pytest.raises(ValueError, match="no training sample has a joint"):
        mean_joints(
            evaluation_crops(Relabelled(photos, joints_valid=NONE, kp2d_valid=NONE), augment)
        )


def test_the_mean_scale_is_that_of_the_images(photos, augment):
    batch = augment.evaluate(whole_batch(photos))
    root = batch.joints_cam_m[:, 9, None]
    logs = fit_weak(batch.joints_cam_m - root, batch.kp2d_crop_ndc, 1.0)[:, 0]
    assert mean_scale(evaluation_crops(photos, augment, batch_size=5)) == pytest.approx(
        float(logs.mean().exp())
    )
    some = [Relabelled(photos, kp2d_valid=NONE)[0], *photos[1:]]
    expected = float(logs[1:].mean().exp())
    assert mean_scale(evaluation_crops(some, augment)) == pytest.approx(expected, rel=1e-5)
    flat = Relabelled(photos, joints_valid=NONE)
    assert mean_scale(evaluation_crops(flat, augment), scale0_per_m=7.0) == 7.0
    task = build(head={"coords": "25d"})
    task.start_from_labels(photos, augment, CPU)
    assert float(task.head.mean_scale_ndc_per_m) == pytest.approx(float(logs.mean().exp()))


def test_the_start_leaves_out_a_share_of_unreadable_images(photos, augment):
    class Damaged(Relabelled):
        def __getitem__(self, index):
            if index in (2, 9):
                raise UnreadableSample(f"{index}.jpg", "cut short")
            return super().__getitem__(index)

    task, readable = build(), [p for i, p in enumerate(photos) if i not in (2, 9)]
    task.start_from_labels(Damaged(photos), augment, CPU, max_unreadable=0.125)
    torch.testing.assert_close(
        task.head.mean_joints_root_m, mean_joints(evaluation_crops(readable, augment))[0]
    )
    with pytest.raises(ValueError, match=r"2 of 16 .*more than the 1 "):
        task.start_from_labels(Damaged(photos), augment, CPU, max_unreadable=0.01)
    with pytest.raises(ValueError, match=r"2 of 16 .*more than the 0 "):
        task.start_from_labels(Damaged(photos), augment, CPU)


def test_left_hands_are_mirrored_on_the_way_in(photos, augment):
    left = [mirror_sample(p) for p in photos]
    for a, b in zip(
        mean_joints(evaluation_crops(left, augment)),
        mean_joints(evaluation_crops(photos, augment)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("coords", ["3d", "25d"])
def test_it_learns_and_is_scored_without_a_mesh(photos, augment, coords):
    task = build(head={"coords": coords})
    assert isinstance(task, Task)
    task.start_from_labels(photos, augment, CPU)
    before, _ = score(InferenceModule(task, augment, source="mean_hand"), photos, batch_size=5)
    task.train()
    batch = augment.evaluate(whole_batch(photos))
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=3e-3)
    for step in range(150):
        task(batch, StepInfo(step, 150)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model = InferenceModule(task, augment)
    after, sheet = score(model, photos, batch_size=5, num_images=4)
    assert after["err2d_percent"] < 0.3 * before["err2d_percent"]
    assert after["mpjpe_mm"] < 0.5 * before["mpjpe_mm"]
    assert after["pck10"] >= before["pck10"]
    assert set(after) == set(before)
    assert not any("mpvpe" in name or name.endswith(("f5", "f15")) for name in after)
    assert (after["num_samples"], after["num_meshes"], after["num_2d"]) == (16, 0, 16)
    assert sheet is not None
    assert sheet.std() > 10
    again, _ = score(InferenceModule(task, augment, source="mean_hand"), photos, batch_size=16)
    assert again["mpjpe_mm"] == pytest.approx(before["mpjpe_mm"], rel=1e-5)
    labels = InferenceModule(task, augment, source="ground_truth")
    gt, _ = score(labels, photos)
    assert gt["mpjpe_mm"] == pytest.approx(0, abs=1e-3)
    assert gt["err2d_percent"] == pytest.approx(0, abs=1e-3)
    assert gt["pck10"] == 1.0
    bare = Relabelled(photos, joints_valid=NONE, kp2d_valid=NONE)
    with pytest.raises(ValueError, match="predictor=ground_truth needs labels"):
        score(labels, bare)


def test_2d_metrics_by_hand(photos, augment):
    task = build()
    batch = augment.evaluate(whole_batch(photos[:2]))

    class Shifted(InferenceModule):
        def estimate(self, stored):
            kp = augment.evaluate(stored).kp2d_crop_ndc.clone()
            kp[0, :7, 0] += 0.6  # 30 % of the side, a third of the joints
            return task.mean_estimate(stored)._replace(joints_crop_ndc=kp)

    metrics, _ = score(Shifted(task, augment), photos[:2])
    assert batch.kp2d_valid.all()
    assert metrics["err2d_percent"] == pytest.approx(5.0, rel=1e-4)
    assert metrics["pck10"] == pytest.approx(1 - 1 / 6, rel=1e-5)


def test_a_frozen_backbone_stays_as_it_came(photos, augment):
    task = build(trained_blocks=0).train()
    assert not task.backbone.training
    assert task.head.training
    batch = augment.evaluate(whole_batch(photos))
    task(batch, StepInfo(0, 1)).loss.backward()
    trained = {n for n, p in task.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in task.named_parameters() if p.grad is not None}
    assert trained
    assert all(n.startswith("head.") for n in trained)
    moving = build()
    moving(batch, StepInfo(0, 1)).loss.backward()
    named = {n: p for n, p in moving.named_parameters() if p.requires_grad}
    assert [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert any(n.startswith("backbone.net.blocks") for n in named)


def test_plain_joint_losses_fit_too(photos, augment):
    task = build({"joints3d": JointLoss(root_joint=9), "joints2d": JointLoss2D()})
    result = task(augment.evaluate(whole_batch(photos)), StepInfo(0, 1))
    assert result.loss.isfinite()
    assert set(result.scalars) == {"loss", "loss/joints3d", "loss/joints2d"}


def test_images_show_skeletons(photos, augment):
    task = build().train()
    drawn = draw(task, augment.evaluate(whole_batch(photos)), (), None)
    assert drawn["predictions"].shape[2] == 3
    assert drawn["predictions"].std() > 10
    assert task.training


def test_photos_kept_in_memory_are_read_once(tmp_path):
    notes = [float(v) for i in range(21) for v in (10 + i, 30 - i, 2)]
    content = {
        "images": [{"id": 0, "file_name": "a.png"}],
        "annotations": [{"image_id": 0, "keypoints": notes}],
    }
    (tmp_path / "notes.json").write_text(json.dumps(content))
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    kept, read = (
        KeypointPhotos(tmp_path, tmp_path / "notes.json", split="all", in_memory=flag)
        for flag in (True, False)
    )
    np.testing.assert_array_equal(kept[0].image, read[0].image)
    (tmp_path / "a.png").unlink()
    assert kept[0].kp2d_valid.all()
    with pytest.raises(ValueError, match="cannot be read"):
        read[0]
