import math

import pytest
import torch

from handmim.geometry.crop import compose, invert, similarity, transform_points
from handmim.objectives.distillation import Pair, PatchDistill
from handmim.objectives.experimental import ClassRecon, low_resolution
from handmim.objectives.keypoint_align import ViewAffine
from tests.objectives.keypoint_cases import batch_of, context


def maps(num: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(num, 2, 4, generator=g) * 2 - 1
    return similarity(0.8 + 0.2 * u[..., 0], u[..., 1], 0.2 * u[..., 2:])


def points_seen(source_from_view: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """One point set per sample, as each of its views sees it."""
    g = torch.Generator().manual_seed(seed)
    in_source = torch.rand(len(source_from_view), 1, 6, 2, generator=g) - 0.5
    return transform_points(invert(source_from_view), in_source.expand(-1, 2, -1, -1))


def test_geometry_keeps_its_precision_under_autocast():
    source_from_view = maps(8)
    points = points_seen(source_from_view)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = transform_points(source_from_view, points).unbind(dim=1)
        round_trip = compose(invert(source_from_view), source_from_view)
    assert (a - b).abs().max() < 1e-5
    torch.testing.assert_close(round_trip, torch.eye(2, 3).expand(8, 2, 2, 3), atol=1e-5, rtol=0)


def patch_cost(logits: torch.Tensor, probs: torch.Tensor, masked: list[list[int]], temp: float):
    """Of masked patches, 0 or 1 by view and patch."""
    is_masked = torch.tensor([masked], dtype=torch.bool)
    batch = batch_of(torch.eye(2, 3).expand(1, len(masked), 2, 3))._replace(is_masked=is_masked)
    return PatchDistill(student_temp=temp).loss(context(batch), Pair(logits, probs))


def test_masked_patch_ce_matches_hand_value():
    # Uniform student over P=4 gives ln 4 per masked patch whatever the target. View 0 has 1 masked
    # patch, view 1
    # has 3: per-view means are ln 4 each, and a third view without a mask counts 0: 2/3 ln 4.
    masked = [[0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]
    loss = patch_cost(torch.zeros(4, 4), torch.eye(4), masked, temp=0.1)
    assert loss.item() == pytest.approx(2 / 3 * math.log(4), rel=1e-6)


def test_masked_patch_ce_uses_the_temperature():
    # logits (1, 0) at temperature 1/2: -log softmax(2, 0)[0] = ln(1 + e^-2)
    one = torch.tensor([[1.0, 0.0]])
    loss = patch_cost(one, one, [[1]], temp=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)


def test_nothing_masked_costs_nothing_and_keeps_the_graph():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = patch_cost(logits, torch.zeros(0, 4), [[0], [0]], temp=0.1)
    loss.backward()
    assert loss.item() == 0.0


def test_the_affine_map_of_two_views_is_the_one_that_carries_their_points():
    source_from_view = maps(5)
    points = points_seen(source_from_view)
    a_from_b = compose(invert(source_from_view[:, 0]), source_from_view[:, 1])
    torch.testing.assert_close(
        transform_points(a_from_b, points[:, 1]), points[:, 0], atol=1e-5, rtol=0
    )
    target = torch.stack([a_from_b, invert(a_from_b)], dim=1)
    assert ViewAffine().loss(context(batch_of(source_from_view)), target) < 1e-9


def test_view_affine_matches_hand_value():
    # Identity maps predicted off by 0.3 in one of six numbers: smooth L1 (beta .1) 0.25 / 6
    eye = torch.eye(2, 3).expand(1, 2, 2, 3)
    pred = eye.clone()
    pred[..., 0, 2] += 0.3
    loss = ViewAffine(beta=0.1).loss(context(batch_of(eye)), pred)
    assert loss.item() == pytest.approx(0.25 / 6, rel=1e-5)


def test_low_resolution_ignores_brightness_and_the_loss_counts_edges():
    g = torch.Generator().manual_seed(0)
    views = torch.rand(1, 1, 3, 16, 16, generator=g)
    a = low_resolution(views, 8)
    b = low_resolution(0.5 * views + 0.2, 8)
    torch.testing.assert_close(a, b, atol=0.1, rtol=0)
    assert a.mean().abs() < 1e-5
    batch = batch_of(torch.eye(2, 3).expand(1, 1, 2, 3))._replace(views=views)
    term, ctx = ClassRecon(side_px=8), context(batch)
    assert term.loss(ctx, a).item() == 0.0
    # A constant offset of 1 has no edge error: smooth L1 (beta .3) = 1 - .15
    assert term.loss(ctx, a + 1).item() == pytest.approx(0.85, rel=1e-4)
