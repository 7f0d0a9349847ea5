"""Terms that tell a view's geometry or redraw it: dense_match, view_flow, point_recon."""

import math

import pytest
import torch

from handmim.geometry.crop import similarity
from handmim.losses import dense_match, point_recon, view_flow
from handmim.losses.class_recon import grey_thumbnails
from handmim.types import PretrainBatch, PretrainOutputs


def batch_of(A: torch.Tensor, displacement: torch.Tensor | None = None) -> PretrainBatch:
    b, g = A.shape[:2]
    is_masked = torch.zeros(b, g, 36, dtype=torch.bool)
    return PretrainBatch(torch.rand(b, g, 3, 48, 48), A, is_masked, displacement)


def maps(angle_deg: float, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """[3, 2, 2, 3]: view a as it is, view b turned, sized and moved."""
    turn = torch.tensor([0.0, math.radians(angle_deg)]).expand(3, 2)
    size = torch.tensor([1.0, scale]).expand(3, 2)
    move = torch.tensor([[0.0, 0.0], [shift, 0.0]]).expand(3, 2, 2)
    return similarity(size, turn, move)


def place_codes(batch: PretrainBatch, width: float = 0.15) -> torch.Tensor:
    """[B, G, N, 400] unit embeddings that depend on the place in the source only."""
    from handmim.geometry.warp import to_source

    centres = dense_match.patch_centres(36).expand(*batch.source_from_view.shape[:2], 36, 2)
    places = to_source(centres, batch.source_from_view, batch.displacement_ndc)
    c = torch.linspace(-1.9, 1.9, 20)
    grid = torch.stack(torch.meshgrid(c, c, indexing="xy"), dim=-1).flatten(0, 1)
    gap = (places.unsqueeze(-2) - grid).square().sum(dim=-1)
    return torch.nn.functional.normalize((-gap / (2 * width**2)).exp() + 1e-6, dim=-1)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_tokens_that_know_their_place_find_their_partners(angle):
    torch.manual_seed(0)
    batch = batch_of(maps(angle, 0.8, 0.1))
    term = dense_match.Term()
    knowing = term(PretrainOutputs(dense=place_codes(batch)), batch)
    straight = PretrainBatch(batch.views, maps(0.0), batch.is_masked)
    by_grid = place_codes(straight)  # says where in its view a patch is, whatever the map
    blind = torch.nn.functional.normalize(torch.randn(3, 2, 36, 400), dim=-1)
    assert knowing < 0.7 * term(PretrainOutputs(dense=blind), batch)
    if angle:
        assert knowing < 0.5 * term(PretrainOutputs(dense=by_grid), batch)


def test_patches_without_a_partner_do_not_count():
    batch = batch_of(maps(0.0, 1.0, 4.0))  # the views show different places
    dense = torch.nn.functional.normalize(torch.randn(3, 2, 36, 8), dim=-1).requires_grad_()
    loss = dense_match.Term()(PretrainOutputs(dense=dense), batch)
    assert loss == 0
    loss.backward()
    assert dense.grad.abs().sum() == 0


def test_patch_centres_are_row_by_row():
    centres = dense_match.patch_centres(4)
    assert centres.tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(ValueError, match="square grid"):
        dense_match.patch_centres(6)
    with pytest.raises(ValueError, match="temp must be > 0"):
        dense_match.Term(temp=0.0)


def test_the_true_warp_costs_nothing_and_no_warp_is_refused():
    control = torch.randn(3, 2, 2, 4, 4) * 0.05
    batch = batch_of(maps(10.0), control)
    term = view_flow.Term(beta_ndc=0.05)
    assert term(PretrainOutputs(pred_displacement=control), batch) == 0
    off = term(PretrainOutputs(pred_displacement=control + 0.1), batch)
    assert off == pytest.approx(0.1 - 0.025, rel=1e-5)  # linear part of smooth L1
    with pytest.raises(ValueError, match=r"views\.warp_ndc"):
        term(PretrainOutputs(pred_displacement=control), batch_of(maps(10.0)))


def test_points_that_redraw_the_view_cost_nothing():
    batch = batch_of(maps(0.0))
    picture = grey_thumbnails(batch.views, 12)
    term = point_recon.Term()
    assert term(PretrainOutputs(point_thumbnail=picture), batch) == 0
    assert term(PretrainOutputs(point_thumbnail=picture.flip(-1)), batch) > 0.3
