import math

import pytest
import roma
import torch

from handmim.geometry.align import similarity_align
from handmim.geometry.camera import (
    cell_centres_ndc,
    fit_weak,
    ndc_from_px,
    project,
    project_weak,
    px_from_ndc,
    solve_translation,
)
from handmim.geometry.crop import (
    compose,
    homogeneous,
    invert,
    px_from_px,
    similarity,
    transform_points,
)
from handmim.geometry.rotation import (
    axis_angle_to_matrix,
    chordal_mean,
    matrix_to_rot6d,
    nearest_rotation,
    rot6d_to_matrix,
    rotation_about_z,
    rotation_from_view,
)

DTYPES = [torch.float32, torch.float64]


def random_rotations(num: int, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return axis_angle_to_matrix(torch.randn(num, 3, generator=g, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_similarity_align_undoes_any_similarity(dtype, scale):
    g = torch.Generator().manual_seed(0)
    dst = torch.randn(8, 21, 3, dtype=dtype, generator=g)
    src = scale * dst @ random_rotations(8, dtype) + 5.0 * scale
    # the 1e-8 added to the norms shows at scale 1e-3
    tol = 1e-3 if dtype == torch.float32 else 2e-5
    torch.testing.assert_close(similarity_align(src, dst), dst, rtol=tol, atol=tol)


def test_reflections_are_allowed_or_refused():
    g = torch.Generator().manual_seed(0)
    dst = torch.randn(4, 21, 3, dtype=torch.float64, generator=g)
    mirrored = dst * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(similarity_align(mirrored, dst), dst, atol=1e-6, rtol=0)
    proper = similarity_align(mirrored, dst, allow_reflection=False)
    assert (proper - dst).norm(dim=-1).mean() > 0.1
    rotated = dst @ random_rotations(4)
    torch.testing.assert_close(
        similarity_align(rotated, dst, allow_reflection=False), dst, atol=1e-6, rtol=0
    )


def test_alignment_is_the_best_similarity():
    # No nearby similarity fits better.
    g = torch.Generator().manual_seed(1)
    dst = torch.randn(1, 10, 3, dtype=torch.float64, generator=g)
    src = dst + 0.3 * torch.randn(1, 10, 3, dtype=torch.float64, generator=g)
    best = similarity_align(src, dst)
    cost = (best - dst).square().sum()
    centre = best.mean(dim=1, keepdim=True)
    for seed in range(20):
        small = 0.01 * torch.randn(
            1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        other = (best - centre) @ axis_angle_to_matrix(small) * (1 + 0.01 * (-1) ** seed) + centre
        assert (other - dst).square().sum() > cost


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 21, 3\) and \(2, 20, 3\)"):
        similarity_align(torch.zeros(2, 21, 3), torch.zeros(2, 20, 3))
    bad = torch.rand(2, 5, 3)
    bad[1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"dst is not finite in samples \[1\]"):
        similarity_align(torch.rand(2, 5, 3), bad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_affine_algebra(dtype):
    g = torch.Generator().manual_seed(0)
    u = torch.rand(16, 5, generator=g, dtype=dtype)
    a = similarity(0.5 + u[:, 0], 6 * u[:, 1], u[:, 2:4], 0.8 + 0.4 * u[:, 4])
    b = similarity(0.5 + u[:, 4], 6 * u[:, 3], u[:, 1:3])
    p = torch.randn(16, 7, 2, generator=g, dtype=dtype)
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    twice = transform_points(a, transform_points(b, p))
    torch.testing.assert_close(transform_points(compose(a, b), p), twice, atol=tol, rtol=tol)
    back = transform_points(invert(a), transform_points(a, p))
    torch.testing.assert_close(back, p, atol=10 * tol, rtol=tol)
    full = torch.linalg.inv(homogeneous(a))[:, :2]
    torch.testing.assert_close(invert(a), full, atol=10 * tol, rtol=10 * tol)


def test_similarity_turns_x_towards_y():
    a = similarity(torch.tensor(2.0), torch.tensor(math.pi / 2), torch.tensor([1.0, 0.0]))
    moved = transform_points(a, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(moved, torch.tensor([[1.0, 2.0]]), atol=1e-6, rtol=0)


def test_pixel_map_agrees_with_the_ndc_map():
    g = torch.Generator().manual_seed(0)
    a = similarity(torch.tensor([0.7]), torch.tensor([0.5]), torch.tensor([[0.1, -0.2]]))
    p_px = torch.rand(1, 9, 2, generator=g) * 64
    direct = transform_points(px_from_px(a, 48, 64), p_px)
    around = px_from_ndc(transform_points(a, ndc_from_px(p_px, 64)), 48)
    torch.testing.assert_close(direct, around, atol=1e-4, rtol=0)


def test_pixel_convention():
    # Left edge 0 -> -1, centre of the first of 4 pixels 0.5 -> -0.75, right edge 4 -> 1
    torch.testing.assert_close(
        ndc_from_px(torch.tensor([0.0, 0.5, 4.0]), 4), torch.tensor([-1.0, -0.75, 1.0])
    )
    torch.testing.assert_close(cell_centres_ndc(4), torch.tensor([-0.75, -0.25, 0.25, 0.75]))


def test_pinhole_hand_value():
    K = torch.tensor([[100.0, 0, 32], [0, 100.0, 32], [0, 0, 1]])
    seen = project(torch.tensor([[0.1, -0.05, 0.5]]), K)
    torch.testing.assert_close(seen, torch.tensor([[52.0, 22.0]]))


def test_weak_camera_is_recovered_and_scale_stays_positive():
    g = torch.Generator().manual_seed(0)
    points = 0.08 * torch.randn(5, 21, 3, generator=g)
    cam = 0.2 * torch.randn(5, 3, generator=g)
    seen = project_weak(points, cam, 8.0)
    torch.testing.assert_close(fit_weak(points, seen, 8.0), cam, atol=1e-4, rtol=0)
    assert fit_weak(points, -seen, 8.0).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size_rad", [1e-7, 1e-3, 1.0, 3.1])
def test_rotation_maps_round_trip(dtype, size_rad):
    g = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(20, 3, generator=g, dtype=dtype), dim=-1)
    rotvec = size_rad * direction
    R = axis_angle_to_matrix(rotvec)
    tol = 2e-3 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(roma.rotmat_to_rotvec(R), rotvec, atol=tol, rtol=tol)
    torch.testing.assert_close(rot6d_to_matrix(matrix_to_rot6d(R)), R, atol=1e-5, rtol=0)


def test_rot6d_layout_is_two_columns_and_tolerates_scale():
    R = random_rotations(1)[0]
    six = matrix_to_rot6d(R)
    torch.testing.assert_close(six[:3], R[:, 0])
    torch.testing.assert_close(six[3:], R[:, 1])
    torch.testing.assert_close(rot6d_to_matrix(3 * six), R)
    assert rot6d_to_matrix(six.to(torch.bfloat16)).dtype == torch.float32


def test_chordal_mean_of_symmetric_turns_is_the_middle():
    rotations = rotation_about_z(torch.tensor([-0.3, 0.0, 0.3], dtype=torch.float64))
    torch.testing.assert_close(
        chordal_mean(rotations), torch.eye(3, dtype=torch.float64), atol=1e-7, rtol=0
    )


def test_translation_of_a_true_projection_is_found_exactly():
    g = torch.Generator().manual_seed(0)
    points = 0.05 * torch.randn(5, 21, 3, generator=g, dtype=torch.float64)
    transl = torch.tensor([0.05, -0.1, 0.6], dtype=torch.float64) * (
        1 + torch.rand(5, 3, generator=g, dtype=torch.float64)
    )
    K = torch.tensor([[600.0, 1.5, 120], [0, 580, 100], [0, 0, 1]], dtype=torch.float64)
    K = K.expand(5, 3, 3)
    seen = project(points + transl[:, None], K)
    torch.testing.assert_close(solve_translation(points, seen, K), transl, atol=1e-9, rtol=0)
    # a weak camera's depth is f / s: 600 px at 0.6 m is 1000 px per metre
    flat = points * torch.tensor([1.0, 1.0, 0.0])
    weak = flat[..., :2] * 1000 + torch.tensor([120.0, 100.0])
    square = torch.tensor([[600.0, 0, 120], [0, 600, 100], [0, 0, 1]]).expand(5, 3, 3)
    found = solve_translation(flat, weak, square)
    expected = torch.tensor([0.0, 0.0, 0.6], dtype=torch.float64).expand(5, 3)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_nearest_rotation_undoes_a_turn_and_never_reflects():
    g = torch.Generator().manual_seed(1)
    points = torch.randn(6, 21, 3, generator=g, dtype=torch.float64)
    R = axis_angle_to_matrix(torch.randn(6, 3, generator=g, dtype=torch.float64))
    torch.testing.assert_close(nearest_rotation(points, points @ R.transpose(1, 2) + 3.0), R)
    mirrored = points * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    assert (torch.det(nearest_rotation(points, mirrored)) > 0).all()
    assert nearest_rotation(points[:0], points[:0]).shape == (0, 3, 3)


def test_a_rotation_is_found_from_one_scaled_orthographic_view():
    g = torch.Generator().manual_seed(2)
    points = torch.randn(6, 21, 3, generator=g, dtype=torch.float64)
    R = axis_angle_to_matrix(torch.randn(6, 3, generator=g, dtype=torch.float64))
    seen = 0.3 * (points @ R.transpose(1, 2))[..., :2] + 0.1
    torch.testing.assert_close(rotation_from_view(points, seen), R)
    assert rotation_from_view(points[:0], seen[:0]).shape == (0, 3, 3)
