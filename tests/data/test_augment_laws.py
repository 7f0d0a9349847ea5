"""Pixels, points, camera and hand ride one map: laws of the labelled augmentation."""

import dataclasses

import numpy as np
import pytest
import torch

from handmim.data.augment import HandAugment, transform_labels
from handmim.data.loader import collate_hands
from handmim.data.pixels import sample_views
from handmim.data.samples import hand_sample, mirror_sample
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.scoring import in_camera
from handmim.geometry.camera import cell_centres_ndc, ndc_from_px, project, px_from_ndc
from handmim.geometry.crop import compose, similarity
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.types import HandBatch, HandSample, HandState, StepInfo
from tests.tasks.small_tasks import small_hand_task

INFO = StepInfo(0, 1)


def posed(hand, seed: int) -> HandSample:
    """A right hand before a pinhole camera, 64 px, on noise."""
    rng = np.random.default_rng(seed)
    rotvecs = rng.normal(0, 0.3, (16, 3))
    rotvecs[0] = rng.normal(0, 1.5, 3)
    rotmats, betas = rotvec_to_matrix(rotvecs), rng.normal(size=10)
    mesh = hand(*(torch.from_numpy(x)[None].float() for x in (rotmats, betas)))
    middle = mesh.joints_m[0].mean(dim=0).numpy()
    away = rng.normal(0, 0.02, 3) + np.array([0, 0, 0.6]) - middle
    joints, verts = mesh.joints_m[0].numpy() + away, mesh.verts_m[0].numpy() + away
    K = np.array([[170.0, 0, 30], [0, 172, 34], [0, 0, 1]])
    seen = joints @ K.T
    return hand_sample(
        rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        str(seed),
        K_crop_px=K,
        kp2d_crop_px=seen[:, :2] / seen[:, 2:],
        joints_cam_m=joints,
        verts_cam_m=verts,
        rotmats=rotmats,
        betas=betas,
    )


@pytest.fixture(params=["right", "left"])
def labelled(request, hand):
    """Right hands with every label, or their mirror images."""
    samples = [posed(hand, seed) for seed in range(12)]
    return samples if request.param == "right" else [mirror_sample(s) for s in samples]


def wild(img_px: int) -> HandAugment:
    return HandAugment(img_px=img_px, scale=(0.6, 1.2), rotation_deg=180, shift_ndc=0.3)


def augmented(samples: list[HandSample], img_px: int, seed: int = 0) -> HandBatch:
    return wild(img_px)(collate_hands(samples), torch.Generator().manual_seed(seed), INFO)


@pytest.mark.parametrize("img_px", [48, 224])
def test_joints_and_mesh_are_seen_where_the_labels_say(labelled, img_px):
    stored, out = collate_hands(labelled), augmented(labelled, img_px)
    truth_px = px_from_ndc(out.kp2d_crop_ndc, img_px)
    assert (project(out.joints_cam_m, out.K_crop_px) - truth_px).abs().max() < 0.05
    # Vertices have no 2D labels: a joint between two of them, seen in the stored crop and carried.
    before_px = project(stored.verts_cam_m, stored.K_crop_px)
    carried = stored._replace(kp2d_crop_ndc=ndc_from_px(before_px, 64))
    moved = wild(img_px)(carried, torch.Generator().manual_seed(0), INFO)
    seen_px = project(out.verts_cam_m, out.K_crop_px)
    assert (seen_px - px_from_ndc(moved.kp2d_crop_ndc, img_px)).abs().max() < 0.05


def test_the_posed_hand_is_the_transformed_mesh(labelled, hand):
    out = augmented(labelled, 48)
    mesh = hand(out.rotmats, out.betas)
    root = mesh.joints_m[:, :1]
    joint0 = out.joints_cam_m[:, :1]
    assert (mesh.verts_m - root + joint0 - out.verts_cam_m).abs().max() < 1e-5
    assert (mesh.joints_m - root + joint0 - out.joints_cam_m).abs().max() < 1e-5
    still = collate_hands(labelled)  # a hand that did not turn would not tell
    assert (out.rotmats[:, 0] - still.rotmats[:, 0]).abs().amax(dim=(1, 2)).min() > 0.01


def dotted(one: HandSample, joints: list[int]) -> HandSample:
    """A red, a green and a blue dot of 2 px at three joints, on black."""
    x = np.arange(64) + 0.5
    image = np.zeros((64, 64, 3), np.uint8)
    for channel, (u, v) in enumerate(one.kp2d_crop_px[joints]):
        far = ((x - u) ** 2)[None] + ((x - v) ** 2)[:, None]
        image[..., channel] = np.round(255 * np.exp(-far / (2 * 2.0**2)))
    return dataclasses.replace(one, image=image)


@pytest.mark.parametrize("img_px", [24, 48, 224])
def test_pixels_ride_along(labelled, img_px):
    # Dots are drawn into the images as they are stored, left hands before they are mirrored.
    found, px = 0, torch.arange(img_px) + 0.5
    for first in range(0, 21, 3):
        joints = list(range(first, first + 3))
        out = augmented([dotted(s, joints) for s in labelled], img_px, seed=first)
        stored = collate_hands(labelled).kp2d_crop_ndc[:, joints]
        truth = px_from_ndc(out.kp2d_crop_ndc[:, joints], img_px)
        # Whole dots only, far from the border, behind which the image goes on in a mirror.
        clear = (stored.abs() < 0.7).all(-1) & (ndc_from_px(truth, img_px).abs() < 0.6).all(-1)
        near_x = (px - truth[..., :1]).abs() < 0.3 * img_px / 2
        near_y = (px - truth[..., 1:]).abs() < 0.3 * img_px / 2
        dot = out.image * near_y[..., :, None] * near_x[..., None, :]
        mass = dot.sum(dim=(-1, -2))
        centre = torch.stack([(dot.sum(-2) * px).sum(-1), (dot.sum(-1) * px).sum(-1)], -1)
        centre = centre / mass.unsqueeze(-1)
        assert (centre - truth)[clear].abs().max() < 0.5
        found += int(clear.sum())
    assert found > 50


def test_predictions_for_left_hands_land_on_the_original_when_mirrored_back(labelled, hand):
    # The truth as a prediction for upright crops, which are always those of right hands.
    stored, augment = collate_hands(labelled), HandAugment(img_px=48, scale=(0.7, 0.9))
    out, module = augment.evaluate(stored), InferenceModule(small_hand_task(hand), augment)
    root = out.joints_cam_m[:, :1]
    unsaid = HandState(
        rotmats=out.rotmats,
        betas=out.betas,
        cam=torch.zeros(len(root), 3),
        verts_root_m=out.verts_cam_m - root,
        joints_root_m=out.joints_cam_m - root,
        verts_crop_ndc=ndc_from_px(project(out.verts_cam_m, out.K_crop_px), 48),
        joints_crop_ndc=out.kp2d_crop_ndc,
    )
    said = unsaid._replace(transl_cam_m=root[:, 0], is_metric=out.has_K)
    answers = (
        (unsaid, "given_wrist", 1e-6),
        (unsaid, "predicted", 1e-4),
        (said, "predicted", 1e-6),
    )
    for answer, placement, metres in answers:
        joints, verts = in_camera(module, stored, answer, placement)
        for i, one in enumerate(labelled):
            np.testing.assert_allclose(joints[i], one.joints_cam_m, atol=metres)
            np.testing.assert_allclose(verts[i], one.verts_cam_m, atol=metres)
            seen = joints[i] @ one.K_crop_px.T
            assert np.abs(seen[:, :2] / seen[:, 2:] - one.kp2d_crop_px).max() < 0.05


def test_two_augmentations_are_one_by_the_composed_map(labelled):
    batch, n = collate_hands(labelled), len(labelled)
    u = torch.rand(2, n, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    angle = 3 * u[..., 0]
    maps = similarity(1 + 0.3 * u[..., 1], angle, 0.3 * u[..., 2:])
    first = transform_labels(batch, 48, maps[0], angle[0])
    first = first._replace(image=torch.zeros(n, 3, 48, 48))  # its side is that of the labels
    both = transform_labels(first, 224, maps[1], angle[1])
    at_once = transform_labels(batch, 224, compose(maps[0], maps[1]), angle.sum(dim=0))
    tolerance = {"K_crop_px": 2e-2, "kp2d_crop_ndc": 1e-5}
    for name in HandBatch._fields[1:]:
        a, b = getattr(both, name), getattr(at_once, name)
        torch.testing.assert_close(a, b, atol=tolerance.get(name, 2e-6), rtol=0, msg=name)
    # Pixels too: bilinear sampling is exact on a ramp, wherever both crops lie inside.
    x = cell_centres_ndc(64).expand(64, 64)
    ramp = torch.stack([x, x.T, x + x.T]).expand(n, 3, 64, 64)
    twice = sample_views(sample_views(ramp, maps[0], 48), maps[1], 32)
    once = sample_views(ramp, compose(maps[0], maps[1]), 32)
    at = torch.stack(torch.meshgrid(*[cell_centres_ndc(32)] * 2, indexing="xy"), dim=-1)
    between = transform_to(maps[1], at)
    # no pixel that is read lies in the last pixel before a border
    inside = (between.abs() < 0.95) & (transform_to(maps[0], between).abs() < 0.87)
    inside = inside.all(dim=-1)
    assert inside.float().mean() > 0.2
    error = (twice - once).abs().amax(dim=1)
    assert error[inside].max() < 1e-4


def transform_to(a_from_b: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """[n, 2, 3] on [(n,) H, W, 2]."""
    return (a_from_b[:, None, None, :, :2] @ points.unsqueeze(-1)).squeeze(-1) + a_from_b[
        :, None, None, :, 2
    ]
