import math

import pytest
import torch

from handmim.geometry.camera import ndc_from_px, project, project_weak
from handmim.geometry.crop import scale_of
from handmim.geometry.rotation import rotation_about_z
from handmim.hand.crop_camera import CropCamera
from handmim.hand.model import JointConventions
from handmim.hand.skeleton import CONVENTION_NAMES
from handmim.types import HandState, Intrinsics

SIDE = 224
S0 = 8.0


def turned_intrinsics(b: int = 6) -> torch.Tensor:
    """Intrinsics of rotated, scaled and shifted crops with unequal focal lengths."""
    g = torch.Generator().manual_seed(3)
    K = torch.tensor([[610.0, 0.0, 120.0], [0.0, 590.0, 100.0], [0.0, 0.0, 1.0]]).expand(b, 3, 3)
    pixel_map = rotation_about_z(torch.randn(b, generator=g))
    pixel_map[:, :2] *= 0.8
    pixel_map[:, :2, 2] = 30 * torch.randn(b, 2, generator=g)
    R = rotation_about_z(torch.randn(b, generator=g))
    return pixel_map @ K @ R.transpose(1, 2)


def intrinsics(b: int = 6, known: bool = True) -> Intrinsics:
    K = turned_intrinsics(b) if known else torch.zeros(b, 3, 3)
    return Intrinsics(K, torch.full((b,), known), SIDE)


def cams(b: int = 6) -> torch.Tensor:
    return 0.02 * torch.randn(b, 3, generator=torch.Generator().manual_seed(1))


def test_focal_length_survives_turning_the_crop():
    K = torch.tensor([[600.0, 0, 100], [0, 600.0, 90], [0, 0, 1]])
    R = rotation_about_z(torch.tensor(0.7))
    assert scale_of(R @ K @ R.T).item() == pytest.approx(600.0, rel=1e-5)


def test_depth_by_hand():
    """f = 500 px, 100 px per 0.25 m: 400 px per metre, so Z = 500 / 400 m; 224 px are 2 ndc."""
    K = torch.tensor([[[500.0, 0, 112], [0, 500.0, 112], [0, 0, 1]]])
    s = 400 * 2 / SIDE
    cam = torch.tensor([[math.log(s / S0), 0.1, -0.05]])
    known = Intrinsics(K, torch.tensor([True]), SIDE)
    root_m, _ = CropCamera("pinhole", S0).root_translation(cam, known)
    # the root is seen 0.1 m x 400 px/m = 40 px right of the centre: X = 40 / 500 * Z = 0.1 m
    torch.testing.assert_close(root_m, torch.tensor([[0.1, -0.05, 1.25]]))


def test_the_pinhole_is_the_weak_camera_to_first_order():
    """At the root the same position; around it the same pixels per metre, whatever K."""
    eyes, cam = intrinsics(), cams()
    camera = CropCamera("pinhole", S0)
    transl, is_metric = camera.root_translation(cam, eyes)
    assert is_metric.all()
    points = torch.zeros(6, 1, 3)
    torch.testing.assert_close(
        camera.project(points, cam, transl, eyes), project_weak(points, cam, S0), atol=1e-5, rtol=0
    )
    small = 1e-3 * torch.eye(3).expand(6, 3, 3)
    moved = camera.project(small, cam, transl, eyes) - camera.project(points, cam, transl, eyes)
    area = torch.linalg.det(moved[:, :2]).abs().sqrt()  # ndc per mm in the image plane
    torch.testing.assert_close(area, 1e-3 * S0 * cam[:, 0].exp(), atol=0, rtol=2e-3)


def test_it_sees_what_the_intrinsics_say():
    eyes, cam = intrinsics(), cams()
    points = 0.1 * torch.randn(6, 30, 3, generator=torch.Generator().manual_seed(2))
    camera = CropCamera("pinhole", S0)
    transl, _ = camera.root_translation(cam, eyes)
    expected = ndc_from_px(project(points + transl[:, None], eyes.K_crop_px), SIDE)
    torch.testing.assert_close(camera.project(points, cam, transl, eyes), expected)


def test_depth_is_metric_only_where_the_intrinsics_are_known():
    cam, points = cams(), torch.randn(6, 4, 3)
    assert CropCamera("weak", S0).root_translation(cam, intrinsics()) == (None, None)
    pinhole = CropCamera("pinhole", S0)
    for eyes in (None, intrinsics(known=False)):
        transl, is_metric = pinhole.root_translation(cam, eyes)
        assert not is_metric.any()
        assert transl.abs().max() == 0
        torch.testing.assert_close(
            pinhole.project(points, cam, transl, eyes), project_weak(points, cam, S0)
        )
    some = intrinsics()._replace(has_K=torch.arange(6) % 2 == 0)
    transl, is_metric = pinhole.root_translation(cam, some)
    assert is_metric.tolist() == [True, False] * 3
    assert (transl.abs().sum(dim=1) > 0).tolist() == [True, False] * 3


def test_unknown_intrinsics_leave_clean_gradients():
    cam = cams()
    cam[3:, 0] = -95.0  # a scale that underflows
    cam.requires_grad_()
    points = torch.randn(6, 4, 3, requires_grad=True)
    mixed = intrinsics()._replace(has_K=torch.arange(6) < 3)
    mixed.K_crop_px[3:] = 0.0
    camera = CropCamera("pinhole", S0)
    transl, _ = camera.root_translation(cam, mixed)
    (camera.project(points, cam, transl, mixed).sum() + transl.sum()).backward()
    assert cam.grad.isfinite().all()
    assert points.grad.isfinite().all()


def test_points_behind_the_camera_stay_finite():
    eyes, cam = intrinsics(), cams()
    camera = CropCamera("pinhole", S0)
    transl, _ = camera.root_translation(cam, eyes)
    behind = -transl[:, None] - torch.tensor([0.0, 0.0, 1.0])
    assert camera.project(behind, cam, transl, eyes).isfinite().all()


def test_another_joint_rule_moves_the_root_but_no_vertex(hand):
    eyes, cam = intrinsics(4), cams(4)
    betas = torch.randn(4, 10, generator=torch.Generator().manual_seed(5))
    mesh = hand(hand.mean_rotmats.float().expand(4, -1, -1, -1), betas)
    root = mesh.joints_m[:, 9:10]
    verts, joints = mesh.verts_m - root, mesh.joints_m - root
    camera = CropCamera("pinhole", S0)
    transl, is_metric = camera.root_translation(cam, eyes)
    state = HandState(
        mesh.verts_m.new_zeros(4, 16, 3, 3), betas, cam, verts, joints,
        camera.project(verts, cam, transl, eyes), camera.project(joints, cam, transl, eyes),
        transl, is_metric,
    )  # fmt: skip
    rule = torch.full((4,), CONVENTION_NAMES.index("freihand"))
    other = JointConventions(hand).state(state, rule, camera, eyes)
    torch.testing.assert_close(
        other.verts_root_m + other.transl_cam_m[:, None],
        verts + transl[:, None],
        atol=1e-6,
        rtol=0,
    )
    tips = [4, 8, 12, 16, 20]
    others = [j for j in range(21) if j not in tips]
    placed = other.joints_root_m + other.transl_cam_m[:, None]
    expected = ndc_from_px(project(placed, eyes.K_crop_px), SIDE)
    torch.testing.assert_close(other.joints_crop_ndc, expected)
    gap = (other.joints_crop_ndc - state.joints_crop_ndc)[:, others].abs().max()
    assert 1e-4 < gap < 0.1


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"camera"):
        CropCamera("orthographic")
    with pytest.raises(ValueError, match=r"scale0_per_m"):
        CropCamera("weak", 0.0)
