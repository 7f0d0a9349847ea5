"""The collapses of regression, reached by training, and left again with the default terms."""

import copy

import pytest
import torch

from handmim.geometry.crop import from_source
from handmim.objectives import point_sets
from handmim.objectives.keypoint_align import REGULARISERS, KeypointAlign
from handmim.objectives.keypoints import keypoint_diagnostics
from tests.objectives.keypoint_cases import (
    Hands,
    Reader,
    aligned,
    batch_of,
    context,
    random_maps,
    some_hands,
    train,
)

# What a network sees of its view, and the metric and threshold of its collapse.
COLLAPSES = {
    "place": ("spread_ndc", 0.2),  # all points at the one location that can be tracked
    "border": ("source_std_ndc", 0.1),  # a template fixed to the source image
    "frame": ("articulation", 0.1),  # a rigid template fixed to the hand
}


def measured(net: Reader) -> tuple[Hands, torch.Tensor, dict[str, float]]:
    hands = some_hands(b=64, seed=7)
    points = net(hands)
    found = keypoint_diagnostics(points.detach(), hands.batch)
    return hands, points, {name.split("/")[1]: value.item() for name, value in found.items()}


def regression_of(net: Reader) -> float:
    hands, points, _ = measured(net)
    return KeypointAlign().part("reg", context(hands.batch), aligned(points)).item()


@pytest.fixture(scope="module")
def collapsed() -> dict[str, Reader]:
    """Networks that read one cue, trained by regression alone."""
    nets = {}
    for cue in (*COLLAPSES, "nothing"):
        nets[cue] = Reader(cue)
        nets[cue].of_joints.requires_grad_(False)
        train(nets[cue], KeypointAlign(parts="reg"), steps=150)
    return nets


def opened(net: Reader) -> Reader:
    """The same network, a breath away from collapse, and able to see the joints from now on."""
    net = copy.deepcopy(net)
    noise = torch.randn(net.of_joints.shape, generator=torch.Generator().manual_seed(5))
    net.of_joints.requires_grad_(True).data.add_(1e-3 * noise)
    return net


def test_points_fixed_in_the_view_cannot_satisfy_regression(collapsed):
    assert regression_of(collapsed["nothing"]) > 0.5


@pytest.mark.parametrize("cue", COLLAPSES)
def test_regression_alone_is_satisfied_by_a_collapse(collapsed, cue):
    _, _, found = measured(collapsed[cue])
    assert regression_of(collapsed[cue]) < 1e-3
    assert found["disagreement_ndc"] < 1e-3
    assert found[COLLAPSES[cue][0]] < 1e-2


def test_the_collapses_are_three_different_ones(collapsed):
    place, border, frame = (measured(collapsed[cue])[2] for cue in COLLAPSES)
    assert place["source_std_ndc"] > 0.05  # the location is the hand's
    assert border["spread_ndc"] > 0.2  # a whole template, the same for every hand
    assert border["cosine"] > 0.99
    assert frame["spread_ndc"] > 0.2  # one template that goes with the hand: only
    assert frame["source_std_ndc"] > 0.1  # articulation differs
    assert frame["retrieval"] > 0.9


@pytest.mark.parametrize("cue", COLLAPSES)
def test_regression_alone_stays_collapsed_even_when_joints_are_seen(collapsed, cue):
    net = opened(collapsed[cue])
    train(net, KeypointAlign(parts="reg"), steps=60, lr=0.02)
    name, alive = COLLAPSES[cue]
    assert measured(net)[2][name] < alive / 2


@pytest.mark.parametrize("cue", COLLAPSES)
def test_default_terms_punish_each_collapse_and_lead_out_of_it(collapsed, cue):
    net = opened(collapsed[cue])
    hands, points, _ = measured(net)
    term, ctx = KeypointAlign(), context(hands.batch)
    against = {
        "place": ("spread", "repulsion"),
        "border": ("disc", "variance"),
        "frame": ("variance",),
    }
    healthy = aligned(hands.joints)
    for name in against[cue]:
        cost = term.part(name, ctx, aligned(points))
        assert cost > 4e-3
        assert cost > 2 * term.part(name, ctx, healthy)
    total = term.loss(ctx, aligned(points))
    total.backward()
    assert net.of_joints.grad.abs().max() > 1e-2
    train(net, KeypointAlign(), steps=150, lr=0.02)
    name, alive = COLLAPSES[cue]
    found = measured(net)[2]
    assert found[name] > alive
    assert found["disagreement_ndc"] < 0.5 * found["source_std_ndc"]
    assert found["retrieval"] > 0.2  # of 64 samples; by chance 0.016


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("options", [{}, {"embed": "canonical"}, {"detach_scale": False}])
@pytest.mark.parametrize("kind", ["smooth_l1", "l2", "cosine"])
def test_gradients_are_finite_where_points_have_collapsed(d, options, kind):
    one_location = torch.zeros(4, 2, 6, d)
    fixed = torch.rand(6, d).expand(4, 2, 6, d).clone()
    for points in (one_location, fixed):
        points = points.requires_grad_()
        ctx = context(batch_of(random_maps(4, 2)))
        loss = KeypointAlign(kind=kind, **options).loss(ctx, aligned(points))
        loss.backward()
        assert loss.isfinite()
        assert points.grad.isfinite().all()


def test_spread_and_repulsion_match_hand_values():
    def spread(points):
        ctx = context(batch_of(random_maps(len(points), 1)))
        return KeypointAlign().part("spread", ctx, aligned(points[:, None])).item()

    bunched = torch.zeros(2, 3, 2)
    assert spread(bunched) == pytest.approx(0.25**2, rel=1e-2)
    assert point_sets.repulsion(bunched, 0.08).item() == pytest.approx(0.08**2, rel=1e-3)
    apart = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    assert spread(apart) == 0.0
    assert point_sets.repulsion(apart, 0.08).item() == 0.0
    # one of three pairs at distance .03: (.08 - .03)^2 / 3
    near = torch.tensor([[[0.0, 0.0], [0.03, 0.0], [0.0, 1.0]]])
    assert point_sets.repulsion(near, 0.08).item() == pytest.approx(0.0025 / 3, rel=1e-3)


@pytest.mark.parametrize("d", [2, 3])
def test_canonical_shapes_forget_similarity_and_keep_articulation(d):
    g = torch.Generator().manual_seed(0)
    base = torch.rand(6, d, generator=g)
    maps = random_maps(32)
    linear = maps[..., :2]
    plane = base[:, :2] @ linear.mT + maps[..., None, :, 2]
    depth = base[:, 2:] * linear.det().sqrt()[:, None, None] + 0.3
    rotated = torch.cat([plane, depth], dim=-1)
    q = point_sets.canonical_shapes(rotated)
    assert q.shape == (32, 6 * d)
    assert q.std(dim=0).max() < 1e-3
    bent = rotated + 0.2 * torch.randn(32, 6, d, generator=g)
    assert point_sets.canonical_shapes(bent).std(dim=0).mean() > 0.1


def test_the_orientation_of_the_mean_shape_is_not_random():
    # Two batches of one hand, rotated anew: a random orientation would rotate every shape.
    base = torch.rand(6, 2, generator=torch.Generator().manual_seed(1))
    q = [point_sets.canonical_shapes(base @ random_maps(16, seed=s)[..., :2].mT)[0] for s in (0, 1)]
    torch.testing.assert_close(q[0], q[1], atol=1e-3, rtol=0)


def test_variance_requires_every_coordinate_to_vary_and_none_twice():
    g = torch.Generator().manual_seed(0)
    free = torch.rand(256, 6, 2, generator=g)
    rigid = free[0] @ random_maps(256)[..., :2].mT

    def hinge(p):
        return point_sets.articulation_variance(p, 0.15, 0.0).item()

    assert hinge(rigid) == pytest.approx(0.15**2, rel=1e-2)
    assert hinge(free) < 0.01 * hinge(rigid)
    # Only one way to bend: all coordinates vary together, which the covariance punishes.
    one_way = free[0] + torch.randn(256, 1, 1, generator=g) * 0.3 * torch.randn(6, 2, generator=g)

    def both(p):
        return point_sets.articulation_variance(p, 0.0, 1.0).item()

    assert both(one_way) > 2 * both(free)
    assert point_sets.articulation_variance(free[:1], 0.15, 0.01).item() == 0.0


def test_known_warps_are_no_articulation():
    warp = 0.1 * torch.randn(64, 2, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    batch = batch_of(random_maps(64, 2, general=True), warp)
    template = (torch.rand(6, 2) - 0.5).expand(64, 2, 6, 2)
    points = from_source(template, batch.source_from_view, warp)
    cost = KeypointAlign().part("variance", context(batch), aligned(points))
    assert cost.item() == pytest.approx(0.15**2, rel=1e-2)
    assert point_sets.articulation_variance(points.flatten(0, 1), 0.15, 0.0) < 0.9 * cost


def test_every_regulariser_has_a_weight():
    term = KeypointAlign(parts="regularised")
    assert tuple(term.weights) == ("reg", *REGULARISERS)
