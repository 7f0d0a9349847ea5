from functools import partial

import pytest
import torch

from handmim.objectives.base import Setup
from handmim.objectives.keypoint_align import KeypointAlign, ViewAffine
from handmim.objectives.keypoints import KeypointHead, LatentPoints, SoftArgmaxKeypoints
from handmim.types import Tokens
from tests.objectives.keypoint_cases import batch_of, context


def tokens(v: int, dim: int, h: int = 4, w: int = 4, seed: int = 0) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    cls, patches = torch.randn(v, dim, generator=g), torch.randn(v, h * w, dim, generator=g)
    return Tokens(cls, patches, (h, w))


def soft_argmax(**options) -> SoftArgmaxKeypoints:
    torch.manual_seed(0)
    return SoftArgmaxKeypoints(16, **{"grid_hw": (4, 4), "num_keypoints": 5, **options})


@pytest.mark.parametrize("num_dims", [2, 3])
def test_points_of_the_class_token_are_bounded_and_start_spread_out(num_dims):
    torch.manual_seed(0)
    head = KeypointHead(16, num_keypoints=21, num_dims=num_dims, hidden_dim=32)
    seen = tokens(8, 16)
    points = head(seen._replace(cls=100 * seen.cls))
    assert points.shape == (8, 21, num_dims)
    assert points.abs().max() <= 1.5
    assert head(seen._replace(cls=torch.zeros(1, 16))).std(dim=-2).min() > 0.2
    assert (head.num_keypoints, head.num_dims) == (21, num_dims)


@pytest.mark.parametrize("make", [KeypointHead, LatentPoints, soft_argmax])
def test_sizes_that_make_no_shape_are_refused(make):
    with pytest.raises(ValueError, match="num_keypoints"):
        make(16, num_keypoints=2) if make is not soft_argmax else make(num_keypoints=2)
    for bad in ({"num_dims": 4}, {"refine": 0}, {"temp": 0.0}, {"prior_ndc": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            soft_argmax(**bad)


@pytest.mark.parametrize("num_dims", [2, 3])
@pytest.mark.parametrize("class_query", [False, True])
def test_soft_argmax_points_lie_in_the_image_and_train_every_parameter(num_dims, class_query):
    head = soft_argmax(num_dims=num_dims, class_query=class_query)
    points = head(tokens(3, 16))
    assert points.shape == (3, 5, num_dims)
    assert points[..., :2].abs().max() < 1.0
    (points * torch.randn_like(points)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_cells_lie_in_their_patch_in_the_order_of_the_heat_maps():
    head = soft_argmax(grid_hw=(2, 3), refine=2)
    cells = head.cells_ndc.unflatten(0, (6, 4))
    # Patch 4 of a 2 x 3 grid: second row, second column; its centre is (0, 1/2).
    torch.testing.assert_close(cells[4].mean(dim=0), torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(cells[4][1] - cells[4][0], torch.tensor([1 / 3, 0.0]))
    torch.testing.assert_close(cells[4][2] - cells[4][0], torch.tensor([0.0, 0.5]))


def test_a_peaked_heat_map_puts_the_point_on_its_cell():
    # Keys of one patch agree with every query, the others do not: the point is in that patch.
    head = soft_argmax(refine=1, temp=0.01, prior_ndc=None, class_query=False, key_dim=16)
    with torch.no_grad():
        head.keys[-1].weight.copy_(torch.eye(16))
        head.queries.fill_(1.0)
        head.queries[:, 8:] = -1.0
    seen = tokens(1, 16)
    patches = torch.zeros_like(seen.patches)
    patches[0, 6, :8], patches[0, 6, 8:] = 1.0, -1.0  # row 1, column 2 of 4 x 4
    points = head(seen._replace(patches=patches))
    torch.testing.assert_close(points[0], torch.tensor([0.25, -0.25]).expand(5, 2))


def test_content_moved_by_a_patch_moves_the_points_by_a_patch():
    head = soft_argmax(grid_hw=(6, 6), temp=0.01, prior_ndc=None)
    seen = tokens(2, 16, 6, 6)
    grid = torch.zeros(2, 6, 6, 16)
    grid[:, 1:4, 1:4] = torch.randn(2, 3, 3, 16)
    moved = grid.roll((1, 2), dims=(1, 2))  # one row down, two columns right
    here, there = (head(seen._replace(patches=x.flatten(1, 2))) for x in (grid, moved))
    step = torch.tensor([2 * 2 / 6, 2 / 6])
    torch.testing.assert_close(there - here, step.expand(2, 5, 2), atol=1e-3, rtol=0)


def test_the_prior_spreads_points_before_training():
    blank = Tokens(torch.zeros(1, 16), torch.zeros(1, 16, 16), (4, 4))
    assert soft_argmax(prior_ndc=None)(blank).abs().max() < 1e-6
    assert soft_argmax(prior_ndc=0.3)(blank).std(dim=-2).min() > 0.1


def test_the_class_token_moves_points_only_with_class_query():
    seen = tokens(1, 16)
    other = seen._replace(cls=seen.cls + torch.randn(1, 16))
    for class_query in (True, False):
        head = soft_argmax(class_query=class_query)
        assert torch.equal(head(seen), head(other)) != class_query


def test_missing_patches_are_an_error():
    seen = tokens(1, 16)
    with pytest.raises(ValueError, match=r"grid of \(4, 4\) patches, got 9"):
        soft_argmax()(seen._replace(patches=seen.patches[:, :9]))


def test_points_keep_their_precision_under_autocast():
    # Sharp heat maps: logits of about +-60. Linear layers round what goes in, the product must not
    # round what comes out.
    head = soft_argmax(temp=0.1)
    with torch.no_grad():
        head.queries.mul_(4.0)
    seen = tokens(64, 16)
    plain = head(seen)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head(seen)
    assert cast.dtype == torch.float32
    assert (cast - plain).abs().mean() < 0.006


def test_latent_points_are_unbounded():
    head = LatentPoints(16, num_keypoints=8, hidden_dim=32, num_hidden=2)
    points = head(tokens(6, 16))
    assert points.shape == (6, 8, 2)
    with torch.no_grad():
        head.project[-1].weight.mul_(100)
    assert head(tokens(6, 16)).abs().max() > 2.0


@pytest.mark.parametrize("num_dims", [2, 3])
def test_the_predictor_starts_as_the_identity_and_learns(num_dims):
    points = torch.randn(3, 2, 6, num_dims)
    objective = KeypointAlign(predictor=True, target="student")
    heads = {"keypoint": partial(KeypointHead, num_keypoints=6, num_dims=num_dims)}
    objective.build(Setup(4, heads=heads))
    eye = torch.eye(2, 3).expand(3, 2, 2, 3)
    predicted = objective.predict(context(batch_of(eye), keypoints=points)).predicted
    torch.testing.assert_close(predicted, points)
    predicted.square().sum().backward()
    assert objective.delta[-1].weight.grad.abs().sum() > 0


def test_the_predicted_map_starts_from_the_identity():
    objective, eye = ViewAffine(hidden_dim=8), torch.eye(2, 3).expand(3, 2, 2, 3)
    objective.build(Setup(4))
    torch.nn.init.zeros_(objective.mlp[-1].weight)
    ctx = context(batch_of(eye), cls=torch.randn(3, 2, 4))
    torch.testing.assert_close(objective.predict(ctx), eye)
