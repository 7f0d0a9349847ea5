"""What rotated crops say is carried back exactly, then averaged."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch

from handmim.data.augment import HandAugment
from handmim.data.freihand import FreiHand
from handmim.data.loader import collate_hands
from handmim.data.samples import mirror_sample
from handmim.evaluation.inference import (
    RULES,
    CropTransform,
    InferenceModule,
    RotatedViews,
    carried_back,
    mean_of,
)
from handmim.evaluation.scoring import in_camera, predict_camera_hands, score
from handmim.geometry.camera import ndc_from_px, project, project_weak, px_from_ndc
from handmim.geometry.rotation import chordal_mean
from handmim.losses.hand import JointLoss
from handmim.models.heads.direct import DirectHead
from handmim.models.heads.pymaf import PyMafHead
from handmim.models.vit import ViT
from handmim.tasks.mesh import HandRegressionTask
from handmim.tasks.regression import KeypointRegressionTask
from handmim.types import HandState
from handmim.utils.timer import Stages

CPU = torch.device("cpu")
ANGLES = [-40.0, -20.0, 0.0, 20.0, 40.0]
MANY = RotatedViews(angles_deg=ANGLES, scales=[0.9, 1.0, 1.1])
# mean cosine of the five angles: (1 + 2 cos 20 + 2 cos 40) / 5
MEAN_COS = (1 + 2 * 0.9396926 + 2 * 0.7660444) / 5
IMG_PX = 48


def backbone() -> ViT:
    size = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    return ViT("vit_tiny_patch16_224", img_px=IMG_PX, patch_px=8, pixel_norm="per_image", size=size)


def mesh_task(hand, camera="weak"):
    torch.manual_seed(0)
    head = partial(
        PyMafHead, hand=hand, channels=8, grid_side=2, num_points=4, point_dims=(8,), cls_dim=8,
        camera=camera,
    )  # fmt: skip
    task = HandRegressionTask(backbone(), head, {"joints3d": JointLoss(root_joint=9)})
    for regressor in task.head.regressors:  # an untrained head would say the same of every crop
        torch.nn.init.normal_(regressor.out.weight, std=0.1)
    return task


def joint_task():
    torch.manual_seed(0)
    losses = {"joints3d": JointLoss(root_joint=9)}
    task = KeypointRegressionTask(backbone(), DirectHead, losses)
    torch.nn.init.normal_(task.head.out.weight, std=0.1)
    return task


@pytest.fixture(params=["weak", "pinhole", "joints"])
def task(request, hand):
    return joint_task() if request.param == "joints" else mesh_task(hand, request.param)


@pytest.fixture(scope="module")
def augment():
    return HandAugment(img_px=IMG_PX, scale=(0.75, 1.0))


@pytest.fixture(scope="module")
def photos(freihand_tree, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    data = FreiHand(freihand_tree, "standin", split="evaluation", image_px=64, cache_dir=cache)
    return [data[i] for i in range(len(data))]


@pytest.fixture(scope="module")
def stored(photos):
    return collate_hands(photos)


def predicted(task, crop):
    with torch.no_grad():
        return task.eval().predict(crop.image, crop.joint_convention, crop.intrinsics)


def averaged(task, augment, stored, angles_deg):
    with torch.no_grad():
        views = RotatedViews(angles_deg=angles_deg)
        return InferenceModule(task, augment, views=views).estimate(stored)


def fields(estimate) -> dict[str, torch.Tensor]:
    return {k: v for k, v in estimate._asdict().items() if v is not None}


def test_every_field_of_a_hand_has_a_rule(stored, augment):
    class Odd(NamedTuple):
        joints_root_m: torch.Tensor
        depth_m: torch.Tensor

    assert set(HandState._fields) == set(RULES)
    with pytest.raises(ValueError, match=r"Odd has \['depth_m'\], which no rule carries back"):
        carried_back(Odd(torch.ones(1, 21, 3), torch.ones(1)), CropTransform.of(0.0, 1.0))
    with pytest.raises(ValueError, match="at least one angle and scale"):
        RotatedViews(angles_deg=[])
    with pytest.raises(ValueError, match=r"are required, got .* scales=\[0\.0\]"):
        RotatedViews(angles_deg=[0.0], scales=[0.0])
    assert len(MANY.views) == 15


def test_labels_of_rotated_crops_are_those_of_the_plain_one(task, stored, augment):
    plain = task.label_estimate(augment.evaluate(stored))
    for views in (MANY, RotatedViews(angles_deg=[180.0]), RotatedViews(angles_deg=[90, -5.0])):
        module = InferenceModule(task, augment, source="ground_truth", views=views)
        mean = module.estimate(stored)
        for name, value in fields(plain).items():
            if name == "is_metric":
                assert bool(getattr(mean, name).all())
                continue
            off = (getattr(mean, name) - value).abs().max()
            # metres and rotations; ndc of a crop of 48 px
            assert off < (0.01 * 2 / IMG_PX if "ndc" in name else 1e-5), (name, off)


def test_what_is_carried_back_is_seen_where_it_was(hand, stored, augment):
    # Both cameras: the estimate of a rotated crop lands in the plain crop on the same content.
    task = mesh_task(hand, "pinhole")
    angle, scale = math.radians(33), 1.2
    to_plain = CropTransform.of(angle, scale)
    rotated = augment.evaluate(stored, angle, scale)
    plain = augment.evaluate(stored)
    with torch.no_grad():
        back = carried_back(predicted(task, rotated), to_plain)
    again = task.hand(back.rotmats, back.betas).verts_m
    between = (again - back.verts_root_m)[:, 1:] - (again - back.verts_root_m)[:, :1]
    assert between.abs().max() < 1e-5
    seen_px = project(back.joints_root_m + back.transl_cam_m[:, None], plain.K_crop_px)
    torch.testing.assert_close(
        ndc_from_px(seen_px, IMG_PX), back.joints_crop_ndc, atol=1e-4, rtol=1e-4
    )
    camera = task.head.crop_camera
    weak = mesh_task(hand)
    with torch.no_grad():
        back = carried_back(predicted(weak, rotated), to_plain)
    seen = project_weak(back.joints_root_m, back.cam, camera.scale0_per_m)
    torch.testing.assert_close(seen, back.joints_crop_ndc, atol=1e-5, rtol=1e-5)
    # From the image of the rotated crop: its middle is that of the plain one, 33 degrees rotated.
    assert rotated.kp2d_crop_ndc.abs().max() < plain.kp2d_crop_ndc.abs().max() * 1.3
    radius = [b.kp2d_crop_ndc.norm(dim=-1) for b in (rotated, plain)]
    torch.testing.assert_close(radius[0] * scale, radius[1], atol=1e-5, rtol=1e-5)


def test_a_bias_in_the_crops_frame_shrinks_by_the_mean_cosine(hand, stored, augment):
    task = mesh_task(hand)
    off_m, off_ndc = torch.tensor([0.02, -0.01, 0.03]), torch.tensor([0.1, 0.05])
    off_cam = torch.tensor([0.2, 0.01, -0.03])

    def biased(batch):
        gt = task.label_estimate(batch)
        return gt._replace(
            verts_root_m=gt.verts_root_m + off_m,
            joints_crop_ndc=gt.joints_crop_ndc + off_ndc,
            cam=gt.cam + off_cam,
            transl_cam_m=gt.transl_cam_m + off_m,
        )

    gt = task.label_estimate(augment.evaluate(stored))
    # Sines of symmetric angles cancel: what lies in the image's plane shrinks, depth stays.
    shrunk_m = off_m * torch.tensor([MEAN_COS, MEAN_COS, 1.0])
    for scales, mean_scale in (([1.0], 1.0), ([0.8, 1.0, 1.5], 1.1)):
        views = RotatedViews(angles_deg=ANGLES, scales=scales).views
        crops = [(augment.evaluate(stored, *v), CropTransform.of(*v)) for v in views]
        mean = mean_of([carried_back(biased(crop), to_plain) for crop, to_plain in crops])
        for name, expected in (
            ("verts_root_m", shrunk_m),
            ("transl_cam_m", shrunk_m),
            ("joints_crop_ndc", off_ndc * MEAN_COS * mean_scale),
            ("cam", off_cam * torch.tensor([1.0, MEAN_COS, MEAN_COS])),
        ):
            off = getattr(mean, name) - getattr(gt, name)
            torch.testing.assert_close(off, expected.expand_as(off), atol=1e-5, rtol=1e-4)


def test_rotations_are_averaged_chordally_and_metric_means_all(hand, stored, augment):
    task = mesh_task(hand, "pinhole")
    with torch.no_grad():
        views = [(augment.evaluate(stored, *v), CropTransform.of(*v)) for v in MANY.views[:3]]
        backs = [carried_back(predicted(task, b), to_plain) for b, to_plain in views]
    backs[1] = backs[1]._replace(is_metric=torch.arange(len(stored.image)) > 0)
    mean = mean_of(backs)
    torch.testing.assert_close(mean.rotmats, chordal_mean(torch.stack([b.rotmats for b in backs])))
    assert (mean.rotmats.det() - 1).abs().max() < 1e-5
    assert mean.is_metric.tolist() == [False] + [True] * (len(stored.image) - 1)


def test_one_plain_look_is_the_plain_answer_exactly(task, stored, augment):
    plain = predicted(task, augment.evaluate(stored))
    same = averaged(task, augment, stored, [0.0])
    assert fields(plain).keys() == fields(same).keys()
    assert all(torch.equal(value, getattr(same, name)) for name, value in fields(plain).items())


def test_the_order_of_views_does_not_matter_and_views_do(task, stored, augment):
    plain = predicted(task, augment.evaluate(stored))
    a = averaged(task, augment, stored, ANGLES)
    b = averaged(task, augment, stored, ANGLES[::-1])
    c = averaged(task, augment, stored, [20.0, 0.0, -40.0, 40.0, -20.0])
    for name, value in fields(a).items():
        torch.testing.assert_close(value, getattr(b, name), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value, getattr(c, name), atol=1e-5, rtol=1e-5)
    assert (a.joints_root_m - plain.joints_root_m).abs().max() > 1e-4
    assert a.joints_root_m[:, 9].abs().max() < 1e-6, "the root stays the origin"


def test_metrics_and_submissions_of_the_ground_truth_stay_perfect(hand, photos, augment):
    watch = Stages(CPU)
    module = InferenceModule(mesh_task(hand), augment, source="ground_truth", views=MANY)
    metrics, _ = score(module, photos, batch_size=3, timer=watch)
    assert metrics["mpvpe_mm"] < 0.01
    assert metrics["err2d_percent"] < 0.02
    assert [num for _, num in watch.laps["all"]] == [3, 3, 2]
    hands = predict_camera_hands(module, photos, batch_size=3)
    for name in ("joints_cam_m", "verts_cam_m"):
        expected = np.stack([getattr(p, name) for p in photos])
        assert np.abs(getattr(hands, name) - expected).max() < 5e-5


@pytest.mark.parametrize("tta", [None, RotatedViews(angles_deg=[-20, 35])], ids=["plain", "tta"])
def test_a_left_hand_is_its_mirrored_right_hand_to_the_end(task, photos, augment, tta):
    # An off-centre camera, and right hands between the left ones.
    K = photos[0].K_crop_px + np.float32([[0, 0, 9], [0, 0, -4], [0, 0, 0]])
    right = [p.__class__(**{**p.__dict__, "K_crop_px": K}) for p in photos]
    left = [mirror_sample(p) if i % 2 else p for i, p in enumerate(right)]
    assert [p.is_right for p in left] == [True, False] * 4
    module = InferenceModule(task, augment, views=tta)
    a, b = (score(module, hands, batch_size=3)[0] for hands in (right, left))
    assert a.keys() == b.keys()
    assert a == pytest.approx(b, rel=1e-4)
    assert a["err2d_percent"] > 1
    if task.hand is None:
        return
    hands, mirrored = (predict_camera_hands(module, h, batch_size=3) for h in (right, left))
    sign = np.where(np.arange(8) % 2 == 0, 1, -1)[:, None]
    for name in ("joints_cam_m", "verts_cam_m"):
        expected = getattr(hands, name).copy()
        expected[..., 0] *= sign
        np.testing.assert_allclose(getattr(mirrored, name), expected, atol=2e-5)


def test_placed_left_hands_are_seen_in_their_own_image(hand, photos, augment):
    left = [mirror_sample(p) for p in photos]
    for camera in ("weak", "pinhole"):
        task = mesh_task(hand, camera)
        stored, module = collate_hands(left), InferenceModule(task, augment)
        batch = augment.evaluate(stored)
        joints, verts = in_camera(module, stored, task.label_estimate(batch), "predicted")
        np.testing.assert_allclose(joints, [s.joints_cam_m for s in left], atol=2e-5)
        np.testing.assert_allclose(verts, [s.verts_cam_m for s in left], atol=2e-5)
        with torch.no_grad():
            state = module.estimate(stored)
        in_space, _ = in_camera(module, stored, state, "predicted")
        # The unmirrored stored crop of 64 px, its own K; the evaluation crop is sqrt(0.75) of it.
        seen_px = project(
            torch.from_numpy(in_space),
            torch.from_numpy(np.stack([s.K_crop_px for s in left])).double(),
        )
        said_px = px_from_ndc(state.joints_crop_ndc * math.sqrt(0.75), 64)
        said_px[..., 0] = 64 - said_px[..., 0]
        if camera == "pinhole":  # exact; a weak camera's nearest pinhole is not
            torch.testing.assert_close(seen_px, said_px.double(), atol=0.02, rtol=1e-3)
        centre = (seen_px - said_px).mean(dim=1).norm(dim=-1)
        assert centre.max() < 1.0
    wrist, _ = in_camera(module, stored, state, "given_wrist")
    np.testing.assert_allclose(wrist[:, 0], [s.joints_cam_m[0] for s in left], atol=1e-6)


def test_the_first_batch_warms_up():
    watch = Stages(CPU)
    watch.laps["all"] = [(8.0, 4)]
    assert watch.seconds_per_item == {"all": 2.0}
    watch.laps["all"] += [(2.0, 4), (1.0, 2)]
    assert watch.seconds_per_item == {"all": 0.5}
    with watch.lap(1):
        pass
    assert 0 <= watch.laps["all"][-1][0] < 1.0
