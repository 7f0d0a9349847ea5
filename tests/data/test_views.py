import math

import pytest
import torch
from torch import Tensor

from handmim.data.pixels import ColourJitter, colour_maps, gaussian_blur, sample_views
from handmim.data.views import MaskSampler, ViewMaker
from handmim.geometry.crop import bounded, compose, from_source, to_source, transform_points
from handmim.types import CropBatch, PretrainBatch, StepInfo

INFO = StepInfo(0, 1)
EVERYTHING = {
    "scale": (0.6, 0.9),
    "rotation_deg": 60.0,
    "full_rotation_prob": 0.3,
    "aspect": 0.15,
    "flip_prob": 0.5,
    "warp_ndc": 0.1,
    "shared_full_rotation_prob": 0.5,
}


def still() -> ColourJitter:
    return ColourJitter(jitter_prob=0.0, grey_prob=0.0, blur_prob=0.0)


def maker(**kwargs: object) -> ViewMaker:
    # pixels of the plain maker, which are not rounded; tests/data/test_pixels.py compares
    settings = {"view_px": 32, "patch_px": 8, "masks": MaskSampler(), "colour": still()}
    settings["augment_on"] = "device"
    return ViewMaker(**(settings | kwargs))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(b: int = 8, side: int = 48, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (b, 3, side, side), generator=seeded(seed), dtype=torch.uint8)


def hidden_map(make: ViewMaker, b: int, seed: int) -> Tensor:
    """crop_from_source of the batch that `make` draws from this seed: its second draw."""
    g = seeded(seed)
    make.draw_views((b, make.num_views), g, make.scale, make.shift_ndc)
    return make.draw_shared(b, g)


def colour_matrices(linear: Tensor, lift: Tensor, mean_luma: Tensor) -> Tensor:
    """[B, 3, 4] of `colour_maps` for images of [B] mean luma."""
    return torch.cat([linear, (lift * mean_luma)[:, None, None].expand(-1, 3, 1)], dim=-1)


def dot_image(points_ndc: Tensor, side: int) -> Tensor:
    """[B, 3, S, S] uint8 images with a smooth bump on one point each."""
    centre = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    d2 = (x - points_ndc[:, 0, None, None]) ** 2 + (y - points_ndc[:, 1, None, None]) ** 2
    return (255 * torch.exp(-d2 / 0.003)).round().byte()[:, None].expand(-1, 3, -1, -1)


def centroid_ndc(image: Tensor) -> Tensor:
    """Centre of mass of each image: [B, 3, S, S] -> [B, 2]."""
    side = image.shape[-1]
    centre = (torch.arange(side) + 0.5) * 2 / side - 1
    weight = image[:, 0] / image[:, 0].sum(dim=(1, 2), keepdim=True)
    return torch.stack([(weight.sum(1) * centre).sum(1), (weight.sum(2) * centre).sum(1)], dim=1)


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["default", "everything"])
def test_pixels_and_points_move_together(settings):
    # A dot drawn on a known point of the crop must appear in the view where the inverse map sends
    # the point.
    make = maker(view_px=96, padding="zeros", **settings)
    points = (torch.rand(32, 2, generator=seeded()) - 0.5) * 0.3
    batch = make(CropBatch(dot_image(points, 128)), seeded(7), INFO)
    crop_from_source = hidden_map(make, 32, 7)
    crop_from_view = compose(crop_from_source[:, None], batch.source_from_view)
    on_crop = points[:, None, None].expand(-1, 2, 1, -1)
    expected = from_source(on_crop, crop_from_view, batch.displacement_ndc)[:, :, 0]
    for v in range(2):
        # a warp moves a bump's mass to where it is stretched
        error = (centroid_ndc(batch.views[:, v]) - expected[:, v]).norm(dim=-1)
        assert error.max() < (0.03 if settings else 0.003)
        assert error.median() < 0.005


def test_values_are_those_of_the_mapped_places():
    # On a image that is linear in x and y, a view's values are its pixels' coordinates.
    side = 64
    ramp = (torch.arange(side, dtype=torch.uint8)[None] * 2).expand(side, side)
    image = torch.stack([ramp, ramp.T, ramp])[None].expand(16, -1, -1, -1)
    make = maker(view_px=24, **{**EVERYTHING, "scale": (0.3, 0.5)}, shared_shift_ndc=0.0)
    batch = make(CropBatch(image), seeded(5), INFO)
    centre = (torch.arange(24) + 0.5) * 2 / 24 - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).flatten(0, 1).expand(16, 2, -1, -1)
    in_source = to_source(pixels, batch.source_from_view, batch.displacement_ndc)
    crop_from_source = hidden_map(make, 16, 5)
    in_crop = transform_points(crop_from_source[:, None].expand(-1, 2, -1, -1), in_source)
    expected = ((in_crop + 1) * side / 2 - 0.5) * 2 / 255
    inside = (in_crop.abs() < 0.95).all(dim=-1)
    found = batch.views[:, :, :2].flatten(3).transpose(2, 3)
    assert inside.float().mean() > 0.8
    assert (found - expected)[inside].abs().max() < 1e-4


@pytest.mark.parametrize("d", [2, 3])
def test_true_joints_of_two_views_align(d):
    # The shared similarity is common to both views, so maps without it already align the joints.
    b, g = 64, seeded(1)
    make = maker(**EVERYTHING)
    A = make.draw_views((b, 2), g, make.scale, make.shift_ndc)
    shared = make.draw_shared(b, g)[:, None].expand(-1, 2, -1, -1)
    warps = bounded(0.12 * torch.randn(b, 2, 2, 4, 4, generator=g))
    joints = (torch.rand(b, 1, 21, d, generator=g) * 2 - 1).expand(-1, 2, -1, -1)
    in_views = from_source(from_source(joints, shared), A, warps)
    carried = from_source(to_source(in_views, A, warps).flip(1), A, warps)
    assert (carried - in_views).abs().max() < 1e-5
    assert (A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0] < 0).float().mean() > 0.3


def test_same_generator_same_batch_and_ranges_hold():
    batch = CropBatch(noise())
    make = maker(colour=ColourJitter(), scale=(0.6, 0.9), full_rotation_prob=0.0)
    first, again = make(batch, seeded(3), INFO), make(batch, seeded(3), INFO)
    other = make(batch, seeded(4), INFO)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert not torch.equal(first.views, other.views)
    assert first.views.shape == (8, 2, 3, 32, 32)
    assert 0 <= first.views.min() <= first.views.max() <= 1
    scale = first.source_from_view[..., 0].norm(dim=-1)
    assert 0.6 - 1e-5 <= scale.min() <= scale.max() <= 0.9 + 1e-5
    assert first.source_from_view[..., 2].abs().max() <= 0.12 + 1e-6
    assert first[3:7] == (None, None, None, None), "nothing that was not asked for"


def angles(A: Tensor) -> Tensor:
    return torch.atan2(A[..., 1, 0], A[..., 0, 0]).abs()


def test_shares_of_flips_and_turns():
    make = maker(aspect=0.2, rotation_deg=20.0, full_rotation_prob=0.0, flip_prob=0.25)
    A = make.draw_views((2000, 2), seeded(), (0.5, 0.9), 0.1)
    mirrored = A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0] < 0
    assert mirrored.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert angles(A)[~mirrored].max() <= math.radians(20.0) + 1e-5
    stretch = A[..., 1].norm(dim=-1) / A[..., 0].norm(dim=-1)
    assert 0.8 - 1e-4 <= stretch.min() < 0.85
    assert 1.15 < stretch.max() <= 1.2 + 1e-4
    shared = maker(shared_full_rotation_prob=0.5).draw_shared(4000, seeded())
    # beyond 30 degrees: half of the samples, of which 150 of 180 degrees
    beyond = (angles(shared) > math.radians(30.0)).float().mean().item()
    assert beyond == pytest.approx(0.5 * 150 / 180, abs=0.03)


def test_hidden_jitter_moves_pixels_but_not_the_maps():
    batch = CropBatch(noise(4))
    with_jitter = maker()(batch, seeded(), INFO)
    still_ = {"shared_rotation_deg": 0.0, "shared_scale": 0.0, "shared_shift_ndc": 0.0}
    without = maker(**still_)(batch, seeded(), INFO)
    assert torch.equal(with_jitter.source_from_view, without.source_from_view)
    assert (with_jitter.views - without.views).abs().mean() > 0.01


def test_warps_reach_pixels_and_the_batch():
    batch = CropBatch(noise())
    warped = maker(warp_ndc=0.1, warp_grid=5)(batch, seeded(), INFO)
    plain = maker()(batch, seeded(), INFO)
    assert warped.displacement_ndc is not None
    assert warped.displacement_ndc.shape == (8, 2, 2, 5, 5)
    assert 0.03 < warped.displacement_ndc.std() < 0.1
    assert torch.equal(warped.source_from_view, plain.source_from_view)
    assert (warped.views - plain.views).abs().mean() > 0.01
    assert (warped.displacement_ndc[:, 0] - warped.displacement_ndc[:, 1]).abs().mean() > 0.02


def test_clean_views_are_the_views_before_colour():
    batch = CropBatch(noise())
    kept = maker(colour=ColourJitter(solarise_prob=0.5), keep_clean=True)(batch, seeded(), INFO)
    plain = maker()(batch, seeded(), INFO)
    torch.testing.assert_close(kept.clean_views, plain.views)
    assert (kept.clean_views - kept.views).abs().mean() > 0.02


def test_local_crops_are_small_numerous_and_seeded():
    batch = CropBatch(noise())
    settings = {"num_local": 3, "local_px": 16, "colour": ColourJitter()}
    first = maker(**settings)(batch, seeded(1), INFO)
    again = maker(**settings)(batch, seeded(1), INFO)
    assert first.local_views is not None
    assert first.local_views.shape == (8, 3, 3, 16, 16)
    assert torch.equal(first.local_views, again.local_views)
    assert first.is_masked.shape == (8, 2, 16)
    without = maker(colour=ColourJitter())(batch, seeded(1), INFO)
    assert torch.equal(without.source_from_view, first.source_from_view)
    # A half of the range of a ramp is what a crop of half the side sees.
    ramp = torch.linspace(0, 255, 64).byte().expand(40, 3, 64, 64)
    turned = {"rotation_deg": 0.0, "full_rotation_prob": 0.0, "shared_rotation_deg": 0.0}
    half = maker(
        num_local=2,
        local_px=32,
        local_scale=(0.5, 0.5),
        local_shift_ndc=0.2,
        shared_scale=0.0,
        **turned,
    )(CropBatch(ramp), seeded(), INFO)
    assert half.local_views is not None
    span = half.local_views.amax(dim=(2, 3, 4)) - half.local_views.amin(dim=(2, 3, 4))
    torch.testing.assert_close(span, torch.full_like(span, 0.5), atol=0.04, rtol=0)


def later_is_partner(batch: PretrainBatch) -> Tensor:
    """Of black crops with white partners: which samples' later views are white."""
    assert batch.views[:, 0].max() == 0
    later = batch.views[:, 1:].flatten(1)
    assert (later.amax(dim=1) - later.amin(dim=1)).max() < 1e-4
    return later[:, 0] > 0.5


@pytest.mark.parametrize(("prob", "low", "high"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_later_views_are_cut_from_partners(prob: float, low: int, high: int):
    black = torch.zeros(200, 3, 16, 16, dtype=torch.uint8)
    crops = CropBatch(black, partner=torch.full_like(black, 255), group=torch.arange(200))
    batch = maker(view_px=8, num_views=3, partner_prob=prob)(crops, seeded(), INFO)
    assert low <= int(later_is_partner(batch).sum()) <= high
    assert torch.equal(batch.group, crops.group)


def test_partners_share_the_geometry_of_the_crop():
    crop, settings = noise(), {"warp_ndc": 0.1, "num_views": 3}
    same = maker(partner_prob=1.0, **settings)(CropBatch(crop, partner=crop), seeded(), INFO)
    torch.testing.assert_close(same.views, maker(**settings)(CropBatch(crop), seeded(), INFO).views)
    with pytest.raises(ValueError, match=r"views\.partner_prob"):
        maker(partner_prob=0.5)(CropBatch(crop), seeded(), INFO)


def test_padding_continues_the_crop():
    white = torch.full((1, 3, 16, 16), 1.0)
    away = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])  # half of the view lies outside
    halves = {p: sample_views(white, away, 8, padding=p) for p in ("reflection", "border", "zeros")}
    assert halves["reflection"].min() == halves["border"].min() == 1
    assert halves["zeros"][..., 4:].max() == 0
    assert halves["zeros"][..., :4].min() == 1


def test_later_views_may_have_colours_of_their_own():
    bright = CropBatch(torch.full((4, 3, 16, 16), 204, dtype=torch.uint8))
    batch = maker(num_views=3, colour_later={"solarise_prob": 1.0})(bright, seeded(), INFO)
    torch.testing.assert_close(batch.views[:, 0], torch.full_like(batch.views[:, 0], 0.8))
    torch.testing.assert_close(batch.views[:, 1:], torch.full_like(batch.views[:, 1:], 0.2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_views", 1),
        ("scale", (0.9, 0.6)),
        ("local_scale", (0.0, 0.6)),
        ("flip_prob", 1.5),
        ("shared_full_rotation_prob", -0.1),
        ("partner_prob", 2.0),
        ("full_rotation_prob", 2.0),
        ("aspect", 1.0),
        ("shared_scale", 1.0),
        ("warp_ndc", -0.1),
        ("warp_grid", 1),
        ("padding", "mirror"),
        ("augment_on", "gpu"),
        ("num_local", -1),
        ("view_px", 30),
    ],
)
def test_settings_that_do_not_fit_are_named(name: str, value: object):
    with pytest.raises(ValueError, match=name):
        maker(**{name: value})


def test_sides_of_local_crops_count_only_where_there_are_some():
    maker(local_px=30)
    with pytest.raises(ValueError, match="local_px"):
        maker(local_px=30, num_local=2)


def test_identity_jitter_changes_nothing_and_grey_is_grey():
    image = torch.rand(3, 3, 8, 8)
    one, zero = torch.ones(3), torch.zeros(3)
    matrix = colour_matrices(*colour_maps(one, one, one, zero), zero)
    torch.testing.assert_close(matrix[:, :, :3], torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    grey = ColourJitter(jitter_prob=0.0, grey_prob=1.0, blur_prob=0.0)
    out = grey(image.clone(), torch.Generator().manual_seed(0))
    assert (out - out[:, :1]).abs().max() < 1e-5
    luma = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    torch.testing.assert_close(out[:, 0], luma, atol=1e-5, rtol=0)


def test_contrast_pivots_on_the_mean_and_brightness_scales():
    # luma 0.5, contrast 0.5, brightness 2: rgb' = 0.5 (2 rgb) + 0.5 (2 * 0.5) = rgb + 0.5
    two, half, one = torch.tensor([2.0]), torch.tensor([0.5]), torch.ones(1)
    matrix = colour_matrices(*colour_maps(two, half, one, torch.zeros(1)), torch.tensor([0.5]))
    out = matrix[0, :, :3] @ torch.tensor([0.2, 0.5, 0.9]) + matrix[0, :, 3]
    torch.testing.assert_close(out, torch.tensor([0.7, 1.0, 1.4]), atol=1e-4, rtol=0)


def test_hue_rotates_colours_and_keeps_luma():
    one = torch.ones(1)
    matrix = colour_matrices(
        *colour_maps(one, one, one, torch.tensor([math.pi / 2])), torch.zeros(1)
    )
    red = torch.tensor([0.8, 0.2, 0.2])
    out = matrix[0, :, :3] @ red
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert (out @ weights).item() == pytest.approx((red @ weights).item(), abs=1e-3)
    assert (out - red).abs().max() > 0.2


def test_blur_keeps_the_mean_and_sigma_0_the_image():
    image = torch.rand(2, 3, 16, 16)
    out = gaussian_blur(image, torch.tensor([0.0, 2.0]), 5)
    torch.testing.assert_close(out[0], image[0], atol=1e-5, rtol=0)
    assert out[1].std() < 0.5 * image[1].std()
    assert out[1].mean().item() == pytest.approx(image[1].mean().item(), abs=0.02)


def test_solarise_inverts_what_is_bright():
    jitter = ColourJitter(jitter_prob=0.0, grey_prob=0.0, blur_prob=0.0, solarise_prob=1.0)
    image = torch.tensor([0.2, 0.9]).view(1, 1, 1, 2).expand(1, 3, 2, 2).clone()
    out = jitter(image, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([0.2, 0.1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_colours_change_in_the_given_share_of_images(share):
    jitter = ColourJitter(jitter_prob=1.0, grey_prob=0.0, blur_prob=0.0, apply_prob=share)
    image = torch.rand(400, 3, 6, 6, generator=seeded())
    is_changed = (jitter(image, seeded()) != image).flatten(1).any(dim=1)
    assert is_changed.float().mean().item() == pytest.approx(share, abs=0.08)
