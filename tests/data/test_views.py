import math

import pytest
import torch

from handmim.contracts import CropBatch, StepInfo
from handmim.data.colour import ColourJitter, colour_matrices, gaussian_blur
from handmim.data.masking import MaskSampler, block_mask, random_mask
from handmim.data.views import ViewMaker, sample_views
from handmim.geometry.crop import compose, invert, similarity, transform_points

INFO = StepInfo(0, 1)


def still() -> ColourJitter:
    return ColourJitter(jitter_prob=0.0, grey_prob=0.0, blur_prob=0.0)


def maker(**kwargs: object) -> ViewMaker:
    settings = {"view_px": 32, "patch_px": 8, "masks": MaskSampler(), "colour": still()}
    return ViewMaker(**(settings | kwargs))


def dot_image(points_ndc: torch.Tensor, side: int) -> torch.Tensor:
    """[B, 3, S, S] pictures with a smooth bump on one point each."""
    centre = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    d2 = (x - points_ndc[:, 0, None, None]) ** 2 + (y - points_ndc[:, 1, None, None]) ** 2
    return torch.exp(-d2 / 0.01)[:, None].expand(-1, 3, -1, -1)


def brightest_ndc(image: torch.Tensor) -> torch.Tensor:
    """Centre of mass of each picture: [B, 3, S, S] -> [B, 2]."""
    side = image.shape[-1]
    centre = (torch.arange(side) + 0.5) * 2 / side - 1
    weight = image[:, 0] / image[:, 0].sum(dim=(1, 2), keepdim=True)
    return torch.stack([(weight.sum(1) * centre).sum(1), (weight.sum(2) * centre).sum(1)], dim=1)


def test_pixels_and_points_move_together():
    # A dot drawn on a known point of the crop must appear in the view where the inverse map sends
    # the point.
    g = torch.Generator().manual_seed(0)
    points = (torch.rand(16, 2, generator=g) - 0.5) * 0.4
    source_from_view, crop_from_source = maker().draw_maps(16, g)
    crop_from_view = compose(crop_from_source[:, None], source_from_view)
    views = sample_views(dot_image(points, 96), crop_from_view, 96)
    for v in range(2):
        expected = transform_points(invert(crop_from_view[:, v]), points[:, None])[:, 0]
        torch.testing.assert_close(brightest_ndc(views[:, v]), expected, atol=0.01, rtol=0)


def test_true_joints_of_two_views_align():
    # The hidden similarity is common to both views, so maps without it already align the joints
    # exactly.
    g = torch.Generator().manual_seed(1)
    joints_crop = torch.rand(64, 21, 2, generator=g) * 2 - 1
    source_from_view, crop_from_source = maker().draw_maps(64, g)
    crop_from_view = compose(crop_from_source[:, None], source_from_view)
    joints_view = transform_points(
        invert(crop_from_view), joints_crop[:, None].expand(-1, 2, -1, -1)
    )
    a_from_b = compose(invert(source_from_view[:, 0]), source_from_view[:, 1])
    carried = transform_points(a_from_b, joints_view[:, 1])
    assert (carried - joints_view[:, 0]).abs().max() < 1e-5


def test_closed_form_of_the_relative_map():
    # L = (s_t / s_u) R(r_t - r_u), o = R(-r_u) (t_t - t_u) / s_u
    s, r = torch.tensor([0.6, 0.9]), torch.tensor([0.4, -1.1])
    t = torch.tensor([[0.1, -0.05], [0.02, 0.12]])
    maps = similarity(s, r, t)
    u_from_t = compose(invert(maps[0]), maps[1])
    rot = lambda a: torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])  # noqa: E731
    torch.testing.assert_close(
        u_from_t[:, :2], s[1] / s[0] * rot(float(r[1] - r[0])), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        u_from_t[:, 2], rot(-float(r[0])) @ (t[1] - t[0]) / s[0], atol=1e-6, rtol=0
    )


def test_same_generator_same_batch_and_ranges_hold():
    batch = CropBatch(torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8))
    make = maker(colour=ColourJitter(), scale=(0.6, 0.9), full_rotation_prob=0.0)
    first = make(batch, torch.Generator().manual_seed(3), INFO)
    again = make(batch, torch.Generator().manual_seed(3), INFO)
    other = make(batch, torch.Generator().manual_seed(4), INFO)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.views, other.views)
    assert first.views.shape == (8, 2, 3, 32, 32)
    assert 0 <= first.views.min() <= first.views.max() <= 1
    scale = first.source_from_view[..., 0].norm(dim=-1)
    assert 0.6 - 1e-5 <= scale.min() <= scale.max() <= 0.9 + 1e-5
    assert first.source_from_view[..., 2].abs().max() <= 0.12 + 1e-6


def test_hidden_jitter_moves_pixels_but_not_the_maps():
    batch = CropBatch(torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8))
    with_jitter = maker()(batch, torch.Generator().manual_seed(0), INFO)
    without = maker(hidden_rotation_deg=0.0, hidden_scale=0.0, hidden_shift_ndc=0.0)(
        batch, torch.Generator().manual_seed(0), INFO
    )
    assert torch.equal(with_jitter.source_from_view, without.source_from_view)
    assert (with_jitter.views - without.views).abs().mean() > 0.01


def test_one_view_or_bad_scale_is_refused():
    with pytest.raises(ValueError, match="num_views"):
        maker(num_views=1)
    with pytest.raises(ValueError, match="scale"):
        maker(scale=(0.9, 0.6))


@pytest.mark.parametrize("count", [1, 6, 18, 30])
def test_block_masks_hide_about_what_was_asked(count: int):
    rng = np_rng(0)
    hidden = [int(block_mask((6, 6), count, rng).sum()) for _ in range(50)]
    assert max(hidden) <= count
    assert min(hidden) >= 1
    assert sum(hidden) / len(hidden) >= 0.8 * count


def np_rng(seed: int):
    import numpy as np

    return np.random.default_rng(seed)


def test_block_masks_are_clumped_and_random_ones_are_not():
    def borders(mask):
        return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())

    rng = np_rng(1)
    block = sum(borders(block_mask((14, 14), 70, rng)) for _ in range(20))
    scattered = sum(borders(random_mask((14, 14), 70, rng)) for _ in range(20))
    assert block < 0.6 * scattered
    assert random_mask((14, 14), 70, rng).sum() == 70


def test_sampler_masks_the_share_and_spreads_the_ratios():
    sampler = MaskSampler(shape="random", ratio=(0.1, 0.5), masked_share=0.5)
    masks = sampler(64, (10, 10), torch.Generator().manual_seed(0))
    per_view = masks.sum(dim=1)
    assert masks.dtype == torch.bool
    assert int((per_view > 0).sum()) == 32
    ratios = per_view[per_view > 0].sort().values / 100
    expected = 0.1 + 0.4 * (torch.arange(32) + 0.5) / 32
    assert (ratios - expected).abs().max() < 0.02
    assert MaskSampler(masked_share=0.0)(8, (4, 4), torch.Generator()).sum() == 0


def test_bad_mask_settings_are_named():
    with pytest.raises(ValueError, match="shape"):
        MaskSampler(shape="blob")
    with pytest.raises(ValueError, match="ratio"):
        MaskSampler(ratio=(0.5, 0.1))


def test_identity_jitter_changes_nothing_and_grey_is_grey():
    image = torch.rand(3, 3, 8, 8)
    one, zero = torch.ones(3), torch.zeros(3)
    matrix = colour_matrices(one, one, one, zero, zero)
    torch.testing.assert_close(matrix[:, :, :3], torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    grey = ColourJitter(jitter_prob=0.0, grey_prob=1.0, blur_prob=0.0)
    out = grey(image.clone(), torch.Generator().manual_seed(0))
    assert (out - out[:, :1]).abs().max() < 1e-5
    luma = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    torch.testing.assert_close(out[:, 0], luma, atol=1e-5, rtol=0)


def test_contrast_pivots_on_the_mean_and_brightness_scales():
    # luma 0.5, contrast 0.5, brightness 2: rgb' = 0.5 (2 rgb) + 0.5 (2 * 0.5) = rgb + 0.5
    two, half, one = torch.tensor([2.0]), torch.tensor([0.5]), torch.ones(1)
    matrix = colour_matrices(two, half, one, torch.zeros(1), torch.tensor([0.5]))
    out = matrix[0, :, :3] @ torch.tensor([0.2, 0.5, 0.9]) + matrix[0, :, 3]
    torch.testing.assert_close(out, torch.tensor([0.7, 1.0, 1.4]), atol=1e-4, rtol=0)


def test_hue_turns_colours_and_keeps_luma():
    one = torch.ones(1)
    matrix = colour_matrices(one, one, one, torch.tensor([math.pi / 2]), torch.zeros(1))
    red = torch.tensor([0.8, 0.2, 0.2])
    out = matrix[0, :, :3] @ red
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert (out @ weights).item() == pytest.approx((red @ weights).item(), abs=1e-3)
    assert (out - red).abs().max() > 0.2


def test_blur_keeps_the_mean_and_sigma_0_the_picture():
    image = torch.rand(2, 3, 16, 16)
    out = gaussian_blur(image, torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(out[0], image[0], atol=1e-5, rtol=0)
    assert out[1].std() < 0.5 * image[1].std()
    assert out[1].mean().item() == pytest.approx(image[1].mean().item(), abs=0.02)


def test_solarise_inverts_what_is_bright():
    jitter = ColourJitter(jitter_prob=0.0, grey_prob=0.0, blur_prob=0.0, solarise_prob=1.0)
    image = torch.tensor([0.2, 0.9]).view(1, 1, 1, 2).expand(1, 3, 2, 2).clone()
    out = jitter(image, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([0.2, 0.1]), atol=1e-5, rtol=0)
