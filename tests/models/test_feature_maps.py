import pytest
import torch
import torch.nn.functional as F

from handmim.geometry.camera import cell_centres_ndc
from handmim.models.heads.pymaf import sample_map


def plain(feature_map, points_ndc):
    """PyTorch's own."""
    sampled = F.grid_sample(feature_map, points_ndc.unsqueeze(2), align_corners=False)
    return sampled.squeeze(-1).transpose(1, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_grid_sample_inside_and_outside(layout):
    g = torch.Generator().manual_seed(0)
    feature_map = torch.randn(3, 5, 8, 12, generator=g).contiguous(memory_format=layout)
    points = 1.5 * torch.randn(3, 200, 2, generator=g)
    points[0, :4] = torch.tensor([[-1.0, -1], [1, 1], [0, 1e30], [-1e30, 0]])
    assert (points.abs() > 1.2).any(dim=2).sum() > 50
    grad = torch.randn(3, 200, 5, generator=g)
    estimates = []
    for sample in (plain, sample_map):
        inputs = (feature_map.requires_grad_(), points.requires_grad_())
        seen = sample(*inputs)
        estimates.append((seen, *torch.autograd.grad(seen, inputs, grad)))
    for ours, theirs, atol in zip(estimates[1], estimates[0], (1e-5, 1e-5, 1e-4), strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-5)


def test_places_that_are_no_numbers_show():
    points = torch.tensor([[[torch.nan, 0.0], [torch.inf, torch.nan], [-torch.inf, 0.0]]])
    assert sample_map(torch.ones(1, 2, 4, 4), points).isnan().all()


def test_an_empty_batch_has_no_samples():
    assert sample_map(torch.ones(0, 2, 4, 4), torch.zeros(0, 3, 2)).shape == (0, 3, 2)


def test_the_gradient_lies_in_memory_as_the_map():
    feature_map = torch.randn(2, 5, 4, 4).contiguous(memory_format=torch.channels_last)
    feature_map.requires_grad_()
    sample_map(feature_map, torch.zeros(2, 3, 2)).sum().backward()
    assert feature_map.grad.is_contiguous(memory_format=torch.channels_last)


def test_places_are_exact_under_bf16():
    """A ramp tells where it was looked at: on a map of 64 cells bf16 places are off by percents."""
    side = cell_centres_ndc(64)
    ramp = side.expand(1, 1, 64, 64)
    points = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    seen = sample_map(ramp.bfloat16(), points)[..., 0]
    rounding = 2**-8  # of the ramp's own values
    assert (seen - points[..., 0]).abs().max() < rounding
    on_whole_numbers = sample_map((ramp * 32 + 0.5).bfloat16(), points)[..., 0]
    torch.testing.assert_close(on_whole_numbers, points[..., 0] * 32 + 0.5, atol=1e-3, rtol=0)
