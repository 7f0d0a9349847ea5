"""Points of another view that predict this one: carried by the known maps, and with their
gradient."""

import pytest
import torch

from handmim.geometry.crop import bounded, from_source, similarity
from handmim.objectives.hog import PointHog
from handmim.types import PretrainBatch
from tests.objectives.keypoint_cases import context

B, G, K = 5, 3, 7


def uniform(*shape: int, low: float, high: float, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=g)


# Each kind of map alone, and all together.
KINDS: dict[str, tuple[str, ...]] = {
    **{
        kind: (kind,)
        for kind in ("scale", "rotation", "shift", "flip", "anisotropy", "warp", "nothing")
    },
    "all": ("scale", "rotation", "shift", "flip", "anisotropy", "warp"),
}


def batch_with(*kinds: str) -> PretrainBatch:
    """Views whose maps differ from view to view and from sample to sample."""
    scale, angle = torch.ones(B, G), torch.zeros(B, G)
    shift, aspect = torch.zeros(B, G, 2), torch.ones(B, G)
    if "scale" in kinds:
        scale = uniform(B, G, low=0.5, high=1.1, seed=0)
    if "rotation" in kinds:
        angle = uniform(B, G, low=-3.1, high=3.1, seed=1)
    if "shift" in kinds:
        shift = uniform(B, G, 2, low=-0.3, high=0.3, seed=2)
    if "anisotropy" in kinds:
        aspect = uniform(B, G, low=0.8, high=1.25, seed=3)
    if "flip" in kinds:
        aspect = aspect * torch.tensor([1.0, -1.0, -1.0])
    field = None
    if "warp" in kinds:
        field = bounded(uniform(B, G, 2, 4, 4, low=-0.2, high=0.2, seed=4))
    return PretrainBatch(
        torch.zeros(B, G, 3, 8, 8),
        similarity(scale, angle, shift, aspect),
        torch.zeros(B, G, 1, dtype=torch.bool),
        displacement_ndc=field,
    )


def predicting(batch: PretrainBatch, points: torch.Tensor, points_from: str) -> torch.Tensor:
    """[B, G, K, d] as the heads that read points get them."""
    ctx = context(batch, keypoints=points)
    return PointHog(points_from=points_from).points(ctx)


def true_points(batch: PretrainBatch, d: int = 2) -> torch.Tensor:
    """Points of each source as each of its views sees them."""
    in_source = uniform(B, 1, K, d, low=-0.6, high=0.6, seed=5).expand(B, G, K, d)
    return from_source(in_source, batch.source_from_view, batch.displacement_ndc)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_true_points_of_another_view_arrive_where_this_view_sees_them(kind, d):
    batch = batch_with(*KINDS[kind])
    points = true_points(batch, d)
    if kind != "nothing":  # else all views see the same, and nothing would have to be carried
        for shift in (1, 2):
            assert (points - points.roll(shift, dims=1)).abs().amax(dim=(1, 2, 3)).min() > 0.01
    torch.testing.assert_close(predicting(batch, points, "other"), points, atol=5e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_own_points_are_left_as_they_are(kind):
    batch = batch_with(*KINDS[kind])
    points = uniform(B, G, K, 2, low=-1, high=1, seed=6)
    assert torch.equal(predicting(batch, points, "own"), points)


def test_carried_points_are_those_of_the_next_view_and_not_the_own():
    batch = batch_with(*KINDS["all"])
    true = true_points(batch)
    for moved in range(G):
        points = true.clone()
        points[:, moved] += 0.1
        gap = (predicting(batch, points, "other") - true).abs().amax(dim=(0, 2, 3))
        for view in range(G):
            if (view + 1) % G == moved:
                assert gap[view] > 0.03
            else:
                assert gap[view] < 5e-6


@pytest.mark.parametrize(("points_from", "ahead"), [("other", 1), ("own", 0)])
def test_gradient_reaches_the_points_that_were_carried_and_no_others(points_from, ahead):
    batch = batch_with(*KINDS["all"])
    for view in range(G):
        points = true_points(batch).requires_grad_()
        (grad,) = torch.autograd.grad(
            predicting(batch, points, points_from)[:, view].square().sum(), points
        )
        reached = grad.abs().amax(dim=3)  # [B, G, K]
        source = (view + ahead) % G
        assert (reached[:, source] > 1e-3).all()
        others = [v for v in range(G) if v != source]
        assert (reached[:, others] == 0).all()
