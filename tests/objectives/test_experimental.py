"""Experimental objectives: dense_match, view_flow, low-resolution reconstruction."""

import math

import pytest
import torch

from handmim.geometry.crop import similarity, to_source
from handmim.objectives.base import Setup
from handmim.objectives.experimental import (
    ClassRecon,
    DenseMatch,
    PointRecon,
    ViewFlow,
    low_resolution,
)
from handmim.types import PretrainBatch
from tests.objectives.keypoint_cases import context


def batch_of(A: torch.Tensor, displacement: torch.Tensor | None = None) -> PretrainBatch:
    b, g = A.shape[:2]
    is_masked = torch.zeros(b, g, 36, dtype=torch.bool)
    return PretrainBatch(torch.rand(b, g, 3, 48, 48), A, is_masked, displacement)


def maps(angle_deg: float, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """[3, 2, 2, 3]: view a as it is, view b rotated, scaled and moved."""
    turn = torch.tensor([0.0, math.radians(angle_deg)]).expand(3, 2)
    size = torch.tensor([1.0, scale]).expand(3, 2)
    move = torch.tensor([[0.0, 0.0], [shift, 0.0]]).expand(3, 2, 2)
    return similarity(size, turn, move)


def patch_centres() -> torch.Tensor:
    """[36, 2] ndc of a grid of 6 x 6 patches, row by row."""
    c = (torch.arange(6) + 0.5) / 3 - 1
    return torch.stack(torch.meshgrid(c, c, indexing="xy"), dim=-1).flatten(0, 1)


def position_codes(batch: PretrainBatch, width: float = 0.15) -> torch.Tensor:
    """[B, G, N, 400] unit embeddings that depend on the position in the source only."""
    centres = patch_centres().expand(*batch.source_from_view.shape[:2], 36, 2)
    positions = to_source(centres, batch.source_from_view, batch.displacement_ndc)
    c = torch.linspace(-1.9, 1.9, 20)
    grid = torch.stack(torch.meshgrid(c, c, indexing="xy"), dim=-1).flatten(0, 1)
    gap = (positions.unsqueeze(-2) - grid).square().sum(dim=-1)
    return torch.nn.functional.normalize((-gap / (2 * width**2)).exp() + 1e-6, dim=-1)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_tokens_that_encode_their_position_find_their_partners(angle):
    torch.manual_seed(0)
    batch = batch_of(maps(angle, 0.8, 0.1))
    term = DenseMatch()
    knowing = term.loss(context(batch), position_codes(batch))
    straight = PretrainBatch(batch.views, maps(0.0), batch.is_masked)
    by_grid = position_codes(straight)  # encodes the position in its view, whatever the map
    blind = torch.nn.functional.normalize(torch.randn(3, 2, 36, 400), dim=-1)
    assert knowing < 0.7 * term.loss(context(batch), blind)
    if angle:
        assert knowing < 0.5 * term.loss(context(batch), by_grid)


def test_patches_without_a_partner_do_not_count():
    batch = batch_of(maps(0.0, 1.0, 4.0))  # the views show different parts
    dense = torch.nn.functional.normalize(torch.randn(3, 2, 36, 8), dim=-1).requires_grad_()
    loss = DenseMatch().loss(context(batch), dense)
    assert loss == 0
    loss.backward()
    assert dense.grad.abs().sum() == 0


def test_a_grid_that_is_not_square_and_a_bad_temperature_are_refused():
    with pytest.raises(ValueError, match="square grid"):
        DenseMatch().loss(context(batch_of(maps(0.0))), torch.rand(3, 2, 6, 4))
    with pytest.raises(ValueError, match="temp must be > 0"):
        DenseMatch(temp=0.0)


def test_the_true_warp_costs_nothing_and_no_warp_is_refused():
    control = torch.randn(3, 2, 2, 4, 4) * 0.05
    batch = batch_of(maps(10.0), control)
    term = ViewFlow(beta_ndc=0.05)
    assert term.loss(context(batch), control) == 0
    off = term.loss(context(batch), control + 0.1)
    assert off == pytest.approx(0.1 - 0.025, rel=1e-5)  # linear part of smooth L1
    with pytest.raises(ValueError, match=r"views\.warp_ndc"):
        term.loss(context(batch_of(maps(10.0))), control)


@pytest.mark.parametrize("objective", [ClassRecon(side_px=12), PointRecon(side_px=12)])
def test_a_true_low_resolution_image_costs_nothing(objective):
    batch = batch_of(maps(0.0))
    image = low_resolution(batch.views, 12)
    assert objective.loss(context(batch), image) == 0
    assert objective.loss(context(batch), image.flip(-1)) > 0.3


def test_experimental_heads_have_the_shapes_they_promise():
    batch, cls = batch_of(maps(0.0)), torch.randn(3, 2, 4)
    ctx = context(batch, cls=cls, patches=torch.randn(3, 2, 36, 4))
    shapes = {
        ClassRecon(side_px=6): (3, 2, 6, 6),
        ViewFlow(warp_grid=5): (3, 2, 2, 5, 5),
        DenseMatch(out_dim=7): (3, 2, 36, 7),
    }
    for objective, shape in shapes.items():
        objective.build(Setup(4))
        assert objective.predict(ctx).shape == shape
    torch.testing.assert_close(objective.predict(ctx).norm(dim=-1), torch.ones(3, 2, 36))
