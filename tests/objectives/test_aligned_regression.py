import math

import pytest
import torch

from handmim.objectives.keypoint_align import KeypointAlign
from handmim.objectives.point_sets import RunningScale, carried, linear_part, point_std
from tests.objectives.keypoint_cases import batch_of, random_maps, seen_points

KINDS, FRAMES = ("smooth_l1", "l2", "cosine"), ("view", "source")

EYE = torch.eye(2, 3).expand(1, 2, 2, 3)


def cost(points, batch, target=None, scale=1.0, **options) -> torch.Tensor:
    target = points if target is None else target
    return KeypointAlign(**options).regression(points, target, batch, scale)


def warped(general: bool = True):
    maps = random_maps(8, 2, general=general)
    warp = 0.1 * torch.randn(8, 2, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    return batch_of(maps, warp)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("with_warp", [False, True])
def test_true_points_cost_nothing_under_rotations_sizes_shifts_flips_and_stretch(
    kind, frame, d, with_warp
):
    batch = warped() if with_warp else batch_of(random_maps(32, 2, general=True))
    points = seen_points(batch, d=d)
    loss = cost(points, batch, scale=point_std(points).mean(), kind=kind, frame=frame)
    assert loss.item() < 1e-5
    off = points.clone()
    off[:, 0, 0, d - 1] += 0.2
    assert cost(off, batch, kind=kind, frame=frame) > 1e-4


def test_a_warp_that_is_left_out_is_an_error():
    batch = warped()
    points = seen_points(batch)
    assert cost(points, batch._replace(displacement_ndc=None)) > 1e-3


@pytest.mark.parametrize("frame", FRAMES)
def test_gradient_leads_to_the_true_points(frame):
    batch = warped()
    true = seen_points(batch)
    points = (true + 0.05).requires_grad_()
    opt = torch.optim.Adam([points], lr=0.005)
    for _ in range(25):
        opt.zero_grad()
        cost(points, batch, target=true, frame=frame, kind="l2", limit_ndc=None).backward()
        opt.step()
    assert (points - true).abs().max() < 0.02


@pytest.mark.parametrize("frame", FRAMES)
def test_points_fixed_in_the_view_are_punished_and_shrinking_does_not_help(frame):
    batch = batch_of(random_maps(64, 2))
    points = torch.tensor([[-0.5, 0.0], [0.5, 0.1], [0.0, 0.6]]).expand(64, 2, 3, 2)
    whole = cost(points, batch, scale=point_std(points).mean(), frame=frame, kind="l2")
    small = cost(points / 9, batch, scale=point_std(points / 9).mean(), frame=frame, kind="l2")
    assert whole > 0.5
    assert small > whole  # the views' shifts do not shrink with the points


def test_smooth_l1_matches_hand_value():
    # Identity maps; points of view a at distance d=(0.3, 0) from view b. Smooth L1 with beta 0.1:
    # (0.3 - 0.05) on x, 0 on y: mean 0.125. Spread: points (0,0),(1,0),(0,1): std sqrt(2)/3.
    base = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    points = torch.stack([base + torch.tensor([0.3, 0.0]), base])[None]
    scale = point_std(points).mean()
    assert scale.item() == pytest.approx(math.sqrt(2) / 3, rel=1e-5)
    batch = batch_of(EYE)
    assert cost(points, batch, beta_ndc=0.1).item() == pytest.approx(0.125, rel=1e-5)
    assert cost(points, batch, beta_ndc=0.1, scale=scale).item() == pytest.approx(
        0.125 / (math.sqrt(2) / 3), rel=1e-5
    )
    # l2: squares .09 and 0, mean .045, and a scale of 1/2 counts twice
    assert cost(points, batch, kind="l2", scale=0.5).item() == pytest.approx(0.18, rel=1e-5)


def test_cosine_matches_hand_value():
    # All coordinates of a sample as one vector: (1,0,0,0,0,1) against (0,0,1,0,0,1): cosine 1/2.
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    points = torch.stack([a, 3 * b])[None]
    loss = cost(points, batch_of(EYE), kind="cosine", limit_ndc=None)
    assert loss.item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_carried_points_outside_the_view_are_left_out_or_not(frame):
    points = torch.zeros(1, 2, 3, 2)
    points[:, 1, 0] = 1.6
    mine = torch.zeros(1, 2, 3, 2)
    batch = batch_of(EYE)
    assert cost(mine, batch, target=points, frame=frame).item() == 0.0
    assert cost(mine, batch, target=points, limit_ndc=None, frame=frame) > 0.0
    depth = torch.zeros(1, 2, 3, 3)
    depth[..., 2] = 1.6  # a depth is no position outside of the image
    assert cost(torch.zeros(1, 2, 3, 3), batch, target=depth, frame=frame) > 0.0


@pytest.mark.parametrize("frame", FRAMES)
def test_what_counts_is_where_the_other_view_puts_a_point_in_this_one(frame):
    # View b shows half the width of view a. The point at 0.8 of b is at 0.4 of a; the one at 0.8 of
    # a is at 1.6 of b, which b cannot show.
    maps = EYE.clone()
    maps[:, 1] *= 0.5
    batch = batch_of(maps)
    mine, target = torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 3, 2)
    target[:, 0, 0, 0] = 0.8
    assert cost(mine, batch, target=target, frame=frame, limit_ndc=1.0).item() == 0.0
    assert cost(mine, batch, target=target, frame=frame, limit_ndc=2.0) > 0.0
    assert cost(mine, batch, target=target.flip(1), frame=frame, limit_ndc=1.0) > 0.0


def test_everything_outside_costs_nothing_and_has_a_finite_gradient():
    points = torch.zeros(1, 2, 3, 2, requires_grad=True)
    for kind in KINDS:
        loss = cost(points, batch_of(EYE), target=torch.full((1, 2, 3, 2), 9.0), kind=kind)
        loss.backward()
        assert loss.item() == 0.0
        assert points.grad.isfinite().all()


@pytest.mark.parametrize("frame", FRAMES)
def test_same_view_pairs_compare_a_view_with_itself(frame):
    # Both views agree, the target is 0.2 off everywhere: l2 .04 per pair. Then one view of the
    # target is right: of 4 ordered pairs (same and cross) those 2 that look at the other are off.
    points = torch.rand(1, 2, 3, 2)
    points[:, 1] = points[:, 0]
    target = points + 0.2
    batch = batch_of(EYE)
    options = {"kind": "l2", "frame": frame, "pairs": "cross+same", "limit_ndc": None}
    assert cost(points, batch, target=target, **options).item() == pytest.approx(0.04, rel=1e-4)
    target[:, 0] = points[:, 0]
    assert cost(points, batch, target=target, **options).item() == pytest.approx(0.02, rel=1e-4)
    # With the network's own points a view agrees with itself: half of the cross pairs' cost.
    batch = batch_of(random_maps(4, 2))
    mine = torch.rand(4, 2, 3, 2)
    both, cross = (
        cost(mine, batch, frame=frame, limit_ndc=None, pairs=p) for p in ("cross+same", "cross")
    )
    assert both.item() == pytest.approx(cross.item() / 2, rel=1e-4)


@pytest.mark.parametrize("frame", FRAMES)
def test_without_scale_only_views_of_one_size_agree(frame):
    batch = batch_of(random_maps(8, 2))
    points = seen_points(batch)
    assert cost(points, batch, frame=frame, invert_scale=False) > 1e-2
    rotated = batch_of(random_maps(8, 2, scale=(1.0, 1.0)))
    points = seen_points(rotated)
    assert cost(points, rotated, frame=frame, invert_scale=False) < 1e-5


def test_three_views_are_compared_pair_by_pair():
    batch = batch_of(random_maps(4, 3))
    points = seen_points(batch)
    assert cost(points, batch).item() < 1e-5
    off = points.clone()
    off[:, 2] += 0.1  # four of the six ordered pairs touch view 2
    assert cost(off, batch) > 1e-3


def test_scale_has_a_floor_and_a_gradient_only_where_asked():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    assert not RunningScale()(points).requires_grad
    RunningScale(detach=False)(points).backward()
    assert points.grad.abs().sum() > 0
    one_spot = torch.zeros(3, 2, requires_grad=True)
    spread = RunningScale(floor_ndc=0.07, detach=False)(one_spot)
    spread.backward()
    assert spread.item() == pytest.approx(0.07)
    assert one_spot.grad.isfinite().all()


def test_shrinking_pays_with_a_detached_scale_only():
    # Same error in all: does the loss fall, to first order, when all points shrink?
    batch = batch_of(random_maps(16, 2))
    base = seen_points(batch) + 0.1 * torch.randn(16, 2, 6, 2)
    for detach in (True, False):
        size = torch.ones((), requires_grad=True)
        points = size * base
        cost(points, batch, scale=RunningScale(detach=detach)(points), kind="l2").backward()
        assert (size.grad > 0.2) == detach


def test_moving_scale_starts_with_the_first_batch_follows_and_is_saved():
    scale = RunningScale(momentum=0.9)
    wide = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])  # std sqrt(2)
    assert scale(wide).item() == pytest.approx(math.sqrt(2), rel=1e-4)
    assert scale(wide / 2).item() == pytest.approx(0.95 * math.sqrt(2), rel=1e-4)
    resumed = RunningScale(momentum=0.9)
    resumed.load_state_dict(scale.state_dict())
    resumed.eval()
    assert resumed(wide / 2).item() == pytest.approx(0.95 * math.sqrt(2), rel=1e-4)
    assert resumed.average == scale.average  # looking moves nothing outside training
    assert RunningScale(momentum=0.9).eval()(wide).item() == pytest.approx(math.sqrt(2), rel=1e-4)
    assert not RunningScale().state_dict()
    with pytest.raises(ValueError, match="scale_momentum"):
        RunningScale(momentum=1.0)
    with pytest.raises(ValueError, match="detach_scale"):
        RunningScale(momentum=0.9, detach=False)


def test_linear_part_without_scale_is_the_rotation_of_a_similarity():
    maps = random_maps(5)
    linear = linear_part(maps, with_scale=False)
    torch.testing.assert_close(linear @ linear.mT, torch.eye(2).expand(5, 2, 2))
    v = torch.rand(5, 4, 2)
    torch.testing.assert_close(carried(linear, v), v @ linear.mT)
    torch.testing.assert_close(linear_part(maps, with_scale=True), maps[..., :2])
