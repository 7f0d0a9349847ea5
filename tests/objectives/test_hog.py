import math
from functools import partial

import pytest
import torch

from handmim.models.pyramid import Pyramid
from handmim.objectives.base import Setup
from handmim.objectives.hog import ClassHog, PatchHog, PointHog, PyramidHog, oriented_gradients
from handmim.objectives.keypoints import KeypointHead
from handmim.types import PretrainBatch
from tests.objectives.keypoint_cases import context


def stripes(angle_rad: float, side: int = 48) -> torch.Tensor:
    """[1, 3, side, side] waves whose gradient points along the angle."""
    c = torch.arange(side, dtype=torch.float32)
    y, x = torch.meshgrid(c, c, indexing="ij")
    wave = torch.sin((x * math.cos(angle_rad) + y * math.sin(angle_rad)) * 0.9) * 0.4 + 0.5
    return wave.expand(1, 3, side, side)


def batch_of(views: torch.Tensor, is_masked: torch.Tensor) -> PretrainBatch:
    eye = torch.eye(2, 3).expand(*views.shape[:2], 2, 3)
    return PretrainBatch(views, eye, is_masked)


@pytest.mark.parametrize("k", range(9))
def test_an_edge_falls_into_the_bin_of_its_orientation(k):
    hog = oriented_gradients(stripes(k * math.pi / 9), 6)
    assert hog.shape == (1, 9, 6, 6)
    assert (hog[0].mean(dim=(1, 2)).argmax()) == k


def test_orientation_between_two_bins_is_shared_and_its_opposite_is_the_same():
    hog = oriented_gradients(stripes(2.5 * math.pi / 9), 6)[0, :, 2, 2]
    torch.testing.assert_close(hog[2], hog[3], rtol=0.05, atol=0.05)
    rotated = oriented_gradients(stripes(2.5 * math.pi / 9 + math.pi), 6)[0, :, 2, 2]
    torch.testing.assert_close(hog, rotated, rtol=0.05, atol=0.05)


def test_light_and_contrast_hardly_matter_and_edges_do():
    g = torch.Generator().manual_seed(0)
    image = torch.rand(4, 3, 6, 6, generator=g)
    image = torch.nn.functional.interpolate(image, size=(48, 48), mode="bicubic").clamp(0, 1)
    other = oriented_gradients(image.flip(0), 6)
    hog, dim = oriented_gradients(image, 6), oriented_gradients(0.5 * image + 0.2, 6)
    assert (hog - dim).abs().mean() < 0.2 * (hog - other).abs().mean()
    flat = oriented_gradients(torch.full((1, 3, 48, 48), 0.3), 6)
    assert flat.abs().max() == 0


def test_cells_read_their_own_position_at_any_image_size():
    image = torch.full((1, 3, 96, 96), 0.5)
    image[..., 20:26, 66:70] = 1.0  # row 1, column 4 of 6 cells of 16 pixels
    hog = oriented_gradients(image, 6)[0].sum(dim=0)
    assert hog.argmax() == 1 * 6 + 4
    assert (hog > 0).sum() <= 4


def of_patches(per_patch: int):
    """PatchHog of 3 x 3 patches of 4 channels, and what it makes of tokens [B, G, 9, 4]."""
    objective = PatchHog(per_patch=per_patch)
    objective.build(Setup(4, grid_hw=(3, 3)))

    def predict(tokens: torch.Tensor) -> torch.Tensor:
        views = torch.zeros(*tokens.shape[:2], 3, 8, 8)
        batch = batch_of(views, torch.zeros(*tokens.shape[:3], dtype=torch.bool))
        return objective.predict(context(batch, patches=tokens))

    return objective, predict


def test_head_of_patches_puts_cells_where_they_belong():
    objective, predict = of_patches(2)
    with torch.no_grad():
        objective.project[-1].weight.zero_()
        objective.project[-1].bias.copy_(torch.arange(4.0).repeat(9))
    out = predict(torch.randn(5, 2, 9, 4))
    assert out.shape == (5, 2, 9, 6, 6)
    tile = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(3, 3)
    torch.testing.assert_close(out[0, 0], tile.expand(9, 6, 6))
    # A patch's token changes its own cells only.
    tokens = torch.randn(1, 1, 9, 4)
    _, predict = of_patches(1)
    moved = tokens.clone()
    moved[0, 0, 5] = torch.randn(4)
    changed = (predict(tokens) - predict(moved)).abs().sum(dim=2)[0, 0] > 0
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("objective", [ClassHog(), PointHog(), PatchHog()])
def test_true_gradients_cost_nothing(objective):
    views = torch.rand(2, 2, 3, 48, 48)
    target = oriented_gradients(views.flatten(0, 1), 6).unflatten(0, (2, 2))
    ctx = context(batch_of(views, torch.zeros(2, 2, 36, dtype=torch.bool)))
    assert objective.loss(ctx, target) == 0
    assert objective.loss(ctx, target + 1) == pytest.approx(0.5)


def test_hog_targets_of_one_size_are_computed_once():
    views = torch.rand(1, 2, 3, 48, 48)
    ctx = context(batch_of(views, torch.zeros(1, 2, 36, dtype=torch.bool)))
    for objective in (ClassHog(), PatchHog(), PointHog()):
        objective.loss(ctx, torch.zeros(1, 2, 9, 6, 6))
    ClassHog().loss(ctx, torch.zeros(1, 2, 9, 4, 4))
    assert set(ctx._shared) == {("hog", 6), ("hog", 4)}


def test_where_picks_patches():
    views = torch.rand(1, 2, 3, 48, 48)
    is_masked = torch.zeros(1, 2, 9, dtype=torch.bool)
    is_masked[0, 0, 4] = True  # one 2 x 2 block of cells
    target = oriented_gradients(views.flatten(0, 1), 6).unflatten(0, (1, 2))
    off = target.clone()
    off[0, 0, :, 2:4, 2:4] += 1
    ctx = context(batch_of(views, is_masked))
    assert PatchHog(where="masked").loss(ctx, off) == pytest.approx(0.5)
    assert PatchHog(where="visible").loss(ctx, off) == 0
    none = context(batch_of(views, torch.zeros_like(is_masked)))
    assert PatchHog(where="masked").loss(none, off) == 0


@pytest.mark.parametrize(
    ("objective", "option"), [(PatchHog, "where"), (PointHog, "head"), (PointHog, "points_from")]
)
def test_unknown_choices_of_hog_are_refused(objective, option):
    with pytest.raises(ValueError, match=f"{option} must be one of"):
        objective(**{option: "nothing"})


def of_points(num_keypoints: int, points: torch.Tensor, **sizes: int) -> torch.Tensor:
    """[n, G, 9, s, s] gradients from points [n, G, K, d]."""
    torch.manual_seed(0)
    objective = PointHog(points_from="own", **sizes)
    head = partial(KeypointHead, num_keypoints=num_keypoints)
    objective.build(Setup(4, heads={"keypoint": head}))
    views = torch.zeros(*points.shape[:2], 3, 8, 8)
    batch = batch_of(views, torch.zeros(*points.shape[:2], 1, dtype=torch.bool))
    return objective.predict(context(batch, keypoints=points))


def test_head_of_a_vector():
    objective = ClassHog(cells=5)
    objective.build(Setup(12))
    batch = batch_of(torch.zeros(2, 3, 3, 8, 8), torch.zeros(2, 3, 1, dtype=torch.bool))
    out = objective.predict(context(batch, cls=torch.randn(2, 3, 12)))
    assert out.shape == (2, 3, 9, 5, 5)
    assert out.dtype == torch.float32


def test_drawn_points_predict_gradients_around_their_own_position():
    points = torch.tensor([[[[-0.5, -0.25], [0.0, 0.25], [0.25, 0.0]]]])
    here = of_points(3, points, cells=8, hidden_dim=16)[0]
    assert here.shape == (1, 9, 8, 8)
    assert here.dtype == torch.float32
    # A cell is 0.25 ndc: points one cell to the right, gradients one cell to the right.
    moved = of_points(3, points + torch.tensor([0.25, 0.0]), cells=8, hidden_dim=16)[0]
    torch.testing.assert_close(moved[..., 2:7, 2:7], here[..., 2:7, 1:6], atol=5e-4, rtol=0)
    # The first point moves, and three cells further nothing changes.
    points[:, :, 0] += 0.05
    change = (of_points(3, points, cells=8, hidden_dim=16)[0] - here).abs().amax(dim=(0, 1))
    assert change[:, 6:].max() < 1e-3 < change[2:4, 1:3].min()


def test_drawn_points_get_a_gradient_and_ignore_depth():
    points = (torch.rand(2, 3, 4, 3) - 0.5).requires_grad_()
    of_points(4, points, cells=6).square().sum().backward()
    assert points.grad is not None
    assert (points.grad[..., :2].abs() > 0).all()
    assert (points.grad[..., 2] == 0).all()


def of_pyramid(patch_px: int = 8, side: int = 6, **settings):
    """PyramidHog on 4 channels of tokens, its neck, and a context of tokens [2, 2, side^2, 4]."""
    torch.manual_seed(0)
    sizes = {"pyramid": "light", "channels": 8, "num_levels": 3, "norm": "group"} | settings
    objective = PyramidHog()
    setup = Setup(4, patch_px, (side, side), heads={"neck": partial(Pyramid, **sizes)})
    setup.build(objective)
    views = torch.rand(2, 2, 3, side * patch_px, side * patch_px)
    batch = batch_of(views, torch.zeros(2, 2, side**2, dtype=torch.bool))
    patches = torch.randn(2, 2, side**2, 4, requires_grad=True)
    ctx = context(batch, patches=patches)
    ctx.heads = setup.built
    return objective, ctx, patches


@pytest.mark.parametrize(
    ("patch_px", "side", "num_levels", "cells"),
    [
        (8, 6, 3, [6, 12, 24]),
        (16, 2, 4, [2, 4, 8, 16]),
        (4, 4, 3, [4, 8, 8]),  # cells of 1 px would have no orientation
        (14, 2, 3, [2, 4, 8]),
        (3, 2, 2, [2, 2]),
    ],
)
def test_maps_predict_cells_of_their_own_places_of_two_pixels_at_least(
    patch_px, side, num_levels, cells
):
    objective, ctx, _ = of_pyramid(patch_px, side, num_levels=num_levels)
    made, true = objective.predict(ctx), objective.target(ctx)
    assert [tuple(m.shape) for m in made] == [(4, 9, n, n) for n in cells]
    assert [m.shape for m in true] == [m.shape for m in made]
    assert patch_px * side / cells[-1] >= 2
    assert all(t.dtype == torch.float32 for t in (*made, *true))


def test_targets_of_the_pyramid_are_the_gradients_of_its_cells():
    objective, ctx, _ = of_pyramid()
    target = objective.target(ctx)
    views = ctx.batch.views.flatten(0, 1)
    torch.testing.assert_close(target[0], oriented_gradients(views, 6))  # of 8 px, as others
    dot = torch.full((1, 1, 3, 48, 48), 0.5)
    dot[..., 20:26, 30:36] = 1.0  # rows 10 .. 12, columns 15 .. 17 of 24 cells of 2 pixels
    ctx.batch = ctx.batch._replace(views=dot)
    found = [t[0].sum(dim=0).nonzero().aminmax(dim=0) for t in objective.target(ctx)]
    assert [(low.tolist(), high.tolist()) for low, high in found] == [
        ([2, 3], [3, 4]),
        ([4, 7], [6, 9]),
        ([9, 14], [13, 18]),
    ]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_map_counts_alike_and_true_gradients_cost_nothing(level):
    objective, ctx, _ = of_pyramid()
    prediction = objective.target(ctx)
    assert objective.loss(ctx, prediction) == 0
    prediction[level] = prediction[level] + 1
    assert objective.loss(ctx, prediction) == pytest.approx(0.5 / 3)


def test_all_patches_and_all_of_the_pyramid_get_a_gradient():
    objective, ctx, patches = of_pyramid()
    objective.loss(ctx, objective.predict(ctx)).backward()
    assert (patches.grad.abs().sum(dim=-1) > 0).all()
    parts = (*objective.parameters(), *ctx.heads["neck"].parameters())
    assert all(p.grad is not None and (p.grad != 0).any() for p in parts)


def test_tapped_blocks_are_read_in_the_order_of_the_neck():
    objective, ctx, patches = of_pyramid(taps=[2, 1])
    assert objective.taps == (2, 1)
    each = {block: torch.randn(4, 36, 4) for block in (1, 2)}
    ctx.taps, ctx.tokens = (1, 2), ctx.tokens._replace(taps=(each[1], each[2]))
    maps = ctx.heads["neck"](
        torch.cat([each[2], each[1], patches.flatten(0, 1)], dim=-1)
        .transpose(1, 2)
        .unflatten(2, (6, 6))
    )
    expected = [project(m) for project, m in zip(objective.projects, maps, strict=True)]
    for a, b in zip(objective.predict(ctx), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taps": [3]}, r"taps are blocks 1 to 2, got \[3\] \(task.heads.neck.taps\)"),
        ({"patch_px": 1}, r"patches of 2 px at least, got \(6, 6\), 1"),
        ({"num_levels": 0}, "num_levels must be >= 1, got 0"),
        ({"pyramid": "no"}, "pyramid must be one of"),
        ({"norm": "no"}, "norm must be one of"),
    ],
)
def test_necks_that_cannot_be_told_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        of_pyramid(**settings)
