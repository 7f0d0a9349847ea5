import math

import pytest
import torch

from handmim.geometry.crop import (
    bounded,
    compose,
    displacement,
    from_source,
    invert,
    pixels_in_source,
    similarity,
    to_source,
    unwarp,
)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def maps(b: int, views: int = 2, seed: int = 1) -> torch.Tensor:
    """Turned, scaled, shifted, stretched and half of them mirrored."""
    u = rand(b, views, 6, seed=seed)
    A = similarity(
        0.7 + 0.25 * u[..., 0], math.pi * u[..., 1], 0.3 * u[..., 2:4], 1 + 0.2 * u[..., 4]
    )
    A[..., 0] *= u[..., 5].sign()[..., None]
    return A


def cubic(a: float) -> float:
    """The cubic B-spline at distance a of its node."""
    a = abs(a)
    if a < 1:
        return 2 / 3 - a**2 + a**3 / 2
    return (2 - a) ** 3 / 6 if a < 2 else 0.0


def test_field_is_the_spline_of_its_control_values_with_repeated_borders():
    c = 4
    control = randn(2, c, c, dtype=torch.float64)
    points = 1.4 * rand(50, 2, seed=1, dtype=torch.float64)
    found = displacement(points, control)
    for p, d in zip(points, found, strict=True):
        u, v = ((float(t) + 1) * (c - 1) / 2 for t in p)
        expected = sum(
            cubic(v - i) * cubic(u - j) * control[:, min(max(i, 0), c - 1), min(max(j, 0), c - 1)]
            for i in range(-6, c + 6)
            for j in range(-6, c + 6)
        )
        torch.testing.assert_close(d, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("c", [2, 3, 4, 7])
def test_equal_control_values_shift_everything(c: int):
    control = torch.tensor([0.1, -0.2])[:, None, None].expand(2, c, c)
    found = displacement(3 * rand(40, 2), control)
    torch.testing.assert_close(found, torch.tensor([0.1, -0.2]).expand(40, 2))


def test_axes_x_is_across_and_first():
    control = torch.zeros(2, 4, 4)
    control[0, :, 3] = 0.3  # moves right, at the right edge
    d = displacement(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), control)
    # At the last node: 4/6 of it and 1/6 of the repeated one.
    torch.testing.assert_close(d[0], torch.tensor([0.25, 0.0]))
    assert d[1].abs().max() == 0
    assert d[2, 0] < 0.05


def test_field_is_smooth_across_nodes_and_the_border():
    control = randn(2, 4, 4, dtype=torch.float64)
    t = torch.linspace(-2.2, 2.2, 4001, dtype=torch.float64)
    d = displacement(torch.stack([t, 0.37 * t], dim=-1), control)
    step = t[1] - t[0]
    curvature = d.diff(n=2, dim=0) / step**2
    assert curvature.diff(dim=0).abs().max() < 0.02 * curvature.abs().max()
    far = displacement(2 + rand(20, 2, dtype=torch.float64).abs(), control)
    torch.testing.assert_close(far, control[:, -1, -1].expand(20, 2))


@pytest.mark.parametrize(("c", "std"), [(2, 0.5), (4, 0.12), (4, 2.0), (8, 0.3)])
def test_bounded_fields_contract_and_can_be_undone(c: int, std: float):
    control = bounded(randn(200, 2, c, c) * std)
    p, q = 1.6 * rand(200, 60, 2, seed=1), 1.6 * rand(200, 60, 2, seed=2)
    moved_p, moved_q = displacement(p, control), displacement(q, control)
    ratio = (moved_p - moved_q).abs().amax(dim=-1) / (p - q).abs().amax(dim=-1)
    assert ratio.max() < 0.9
    assert (unwarp(p + moved_p, control) - p).abs().max() < 2e-6
    assert torch.equal(bounded(control * 0.5), control * 0.5), "flat enough: as it was"


def test_steepest_field_there_is_can_be_undone():
    edge = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    control = bounded(torch.stack([edge.expand(4, 4), edge.expand(4, 4)]))
    assert control.abs().max() == pytest.approx(0.3)  # 0.9 * spacing 2/3 / 2
    p = 1.5 * rand(5000, 2)
    assert (unwarp(p + displacement(p, control), control) - p).abs().max() < 2e-6


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("warped", [True, False])
def test_true_joints_of_two_views_meet_in_the_source(d: int, warped: bool, with_scale: bool):
    A = maps(64)
    control = bounded(randn(64, 2, 2, 4, 4) * 0.12) if warped else None
    joints = rand(64, 1, 21, d).expand(-1, 2, -1, -1)
    seen = from_source(joints, A, control, with_scale=with_scale)
    assert (seen[:, 0] - seen[:, 1]).abs().mean() > 0.2
    back = to_source(seen, A, control, with_scale=with_scale)
    assert (back[:, 0] - back[:, 1]).abs().max() < 1e-5
    assert (back - joints).abs().max() < 1e-5


def test_closed_form_of_the_relative_map():
    # view u <- view t: L = (s_t / s_u) F_u R(r_t - r_u) F_t, o = (1 / s_u) F_u R(-r_u) (t_t - t_u),
    # depth scales by s_t / s_u.
    s, r, flip = (0.6, 0.9), (0.4, -1.1), (-1.0, 1.0)
    t = torch.tensor([[0.1, -0.05], [0.02, 0.12]])
    A = similarity(torch.tensor(s), torch.tensor(r), t)
    A[..., 0] *= torch.tensor(flip)[:, None]
    rot = lambda a: torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])  # noqa: E731
    mirror = torch.diag(torch.tensor([flip[0], 1.0]))
    linear = s[1] / s[0] * mirror @ rot(r[1] - r[0]) @ torch.diag(torch.tensor([flip[1], 1.0]))
    offset = mirror @ rot(-r[0]) @ (t[1] - t[0]) / s[0]
    u_from_t = compose(invert(A[0]), A[1])
    torch.testing.assert_close(u_from_t[:, :2], linear, atol=1e-6, rtol=0)
    torch.testing.assert_close(u_from_t[:, 2], offset, atol=1e-6, rtol=0)
    points = rand(5, 3)
    carried = from_source(to_source(points, A[1]), A[0])
    torch.testing.assert_close(carried[:, :2], points[:, :2] @ linear.T + offset, atol=1e-6, rtol=0)
    torch.testing.assert_close(carried[:, 2], points[:, 2] * (s[1] / s[0]))


def test_depth_minds_the_scale_only_and_scale_can_be_left_out():
    A = similarity(torch.tensor(0.5), torch.tensor(1.0), torch.tensor([0.3, 0.2]))
    A[:, 0] *= -1.0  # mirrored: a negative determinant
    points = torch.tensor([[0.2, 0.1, 0.8]])
    out = to_source(points, A)
    assert out[0, 2].item() == pytest.approx(0.4)
    unit = to_source(points, A, with_scale=False)
    assert unit[0, 2].item() == pytest.approx(0.8)
    torch.testing.assert_close(unit[0, :2] - A[:, 2], 2 * (out[0, :2] - A[:, 2]))
    control = bounded(randn(2, 4, 4))
    assert to_source(points, A, control)[0, 2].item() == pytest.approx(0.4)


@pytest.mark.parametrize("warped", [True, False])
def test_pixels_lie_where_points_do(warped: bool):
    side, A = 9, maps(3)
    control = bounded(randn(3, 2, 2, 5, 5) * 0.2) if warped else None
    centre = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    points = torch.stack([x, y], dim=-1).flatten(0, 1).expand(3, 2, -1, 2)
    expected = to_source(points, A, control).unflatten(-2, (side, side))
    torch.testing.assert_close(pixels_in_source(A, side, control), expected, atol=1e-6, rtol=0)


def test_gradients_are_those_of_the_exact_inverse():
    control = bounded(randn(2, 2, 4, 4, dtype=torch.float64) * 0.12).requires_grad_()
    points = (1.2 * rand(2, 6, 2, seed=3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(unwarp, (points, control))
    assert torch.autograd.gradcheck(displacement, (points, control))


def test_autocast_and_half_precision_points_lose_nothing():
    A, control = maps(8), bounded(randn(8, 2, 2, 4, 4) * 0.12)
    points = rand(8, 2, 21, 3).bfloat16()
    plain = to_source(points.float(), A, control)
    back = from_source(plain, A, control)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = to_source(points, A, control)
        mixed_back = from_source(plain, A, control)
        grid = pixels_in_source(A, 8, control)
    assert mixed.dtype == mixed_back.dtype == grid.dtype == torch.float32
    assert torch.equal(mixed, plain)
    assert torch.equal(mixed_back, back)
    assert torch.equal(grid, pixels_in_source(A, 8, control))
