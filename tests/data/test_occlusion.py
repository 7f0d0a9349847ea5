import math

import pytest
import torch

from handmim.data.augment import (
    SIDES,
    HandCutOut,
    OccluderPaste,
    cover,
    draw_sides,
    pick_joint,
    shrinking,
)
from handmim.geometry.camera import cell_centres_ndc

SIDE = 40


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, side: int = SIDE) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=seeded(99))


def hands(n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints about the middle, some beyond the border, one in five without a label."""
    g = seeded(seed)
    return 0.5 * torch.randn(n, 21, 2, generator=g), torch.rand(n, 21, generator=g) > 0.2


def changed(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return (after != before).any(dim=1)


def hit(is_on: torch.Tensor, points_ndc: torch.Tensor) -> torch.Tensor:
    """[B, 21] whether the pixel under each point is on; points outside are not."""
    side = is_on.shape[-1]
    px = ((points_ndc + 1) * side / 2).floor().long()
    inside = ((px >= 0) & (px < side)).all(dim=-1)
    px = px.clamp(0, side - 1)
    return is_on[torch.arange(len(is_on))[:, None], px[..., 1], px[..., 0]] & inside


def test_a_joint_in_the_picture_is_picked_or_the_centre():
    kp2d, valid = hands(400)
    valid[0] = False
    u = torch.linspace(0, 1 - 1e-7, 400)
    point, seen = pick_joint(kp2d, valid, u)
    assert not seen[(kp2d.abs() > 1).any(dim=-1)].any()
    assert torch.equal(point[0], torch.zeros(2))
    is_it = (kp2d == point[:, None]).all(dim=-1)
    assert (is_it & seen)[1:].any(dim=1).all()
    # each of three joints is picked by a third of the numbers
    three = torch.zeros(400, 21, dtype=torch.bool)
    three[:, [2, 9, 20]] = True
    same = 0.9 * kp2d[:1].clamp(-1, 1).expand(400, -1, -1)
    place = (same == pick_joint(same, three, u)[0][:, None]).all(dim=-1).float().argmax(dim=1)
    assert [(place == j).sum().item() for j in (2, 9, 20)] == pytest.approx([133, 133, 133], abs=1)


@pytest.mark.parametrize("fill", ["mean", "noise", 0.25])
def test_cut_outs_are_rectangles_on_a_joint(fill):
    image, (kp2d, valid) = images(200), hands(200)
    before = image.clone()
    cut = HandCutOut(prob=1.0, area=(0.03, 0.1), aspect=(0.5, 2.0), fill=fill)
    out = cut(image, kp2d, valid, seeded())
    assert torch.equal(image, before)
    on = changed(out, image)
    rows, columns = on.any(dim=2), on.any(dim=1)
    assert torch.equal(on, rows[:, :, None] & columns[:, None, :])
    _, seen = pick_joint(kp2d, valid, torch.zeros(len(kp2d)))
    assert (hit(on, kp2d) & seen).any(dim=1)[seen.any(dim=1)].all()
    whole = ~(rows[:, [0, -1]].any(dim=1) | columns[:, [0, -1]].any(dim=1))
    height, width = rows.sum(dim=1)[whole], columns.sum(dim=1)[whole]
    # a side of s pixels covers s - 1 to s + 1 centres
    assert ((height - 1) * (width - 1) <= 0.1 * SIDE**2 + 1e-3).all()
    assert ((height + 1) * (width + 1) >= 0.03 * SIDE**2 - 1e-3).all()
    assert ((width - 1) <= 2 * (height + 1)).all()
    assert ((height - 1) <= 2 * (width + 1)).all()
    values = out.transpose(0, 1)[:, on]
    if fill == 0.25:
        assert (values == 0.25).all()
    elif fill == "mean":
        wanted = image.mean(dim=(-2, -1), keepdim=True).expand_as(image).transpose(0, 1)[:, on]
        torch.testing.assert_close(values, wanted)
    else:
        assert values.mean() == pytest.approx(0.5, abs=0.01)
        assert values.std() == pytest.approx(1 / math.sqrt(12), abs=0.01)


@pytest.mark.parametrize("make", [HandCutOut, OccluderPaste])
def test_without_labelled_joints_the_middle_is_covered(make):
    image, kp2d = images(50), torch.full((50, 21, 2), 0.9)
    out = make(prob=1.0)(image, kp2d, torch.zeros(50, 21, dtype=torch.bool), seeded())
    on = changed(out, image)
    assert on[:, SIDE // 2 - 1 : SIDE // 2 + 1, SIDE // 2 - 1 : SIDE // 2 + 1].any(2).any(1).all()


@pytest.mark.parametrize("make", [HandCutOut, OccluderPaste])
def test_the_share_of_samples_is_the_probability_and_nothing_else_changes(make):
    image, (kp2d, valid) = images(2000, side=8), hands(2000)
    assert make(prob=0.0)(image, kp2d, valid, seeded()) is image
    out = make(prob=0.3)(image, kp2d, valid, seeded())
    is_other = changed(out, image).flatten(1).any(dim=1)
    assert is_other.float().mean() == pytest.approx(0.3, abs=0.04)


PARTS = {
    "mean": HandCutOut(prob=0.6),
    "erased by noise": HandCutOut(prob=0.6, fill="noise"),
    "noise": OccluderPaste(prob=0.6, texture="noise"),
    "batch": OccluderPaste(prob=0.6, texture="batch"),
}


@pytest.mark.parametrize("name", PARTS)
def test_same_generator_same_pixels_and_only_texture_by_choice_is_a_neighbours(name):
    part, image, (kp2d, valid) = PARTS[name], images(12), hands(12)
    out = part(image, kp2d, valid, seeded(3))
    assert torch.equal(out, part(image, kp2d, valid, seeded(3)))
    assert not torch.equal(out, part(image, kp2d, valid, seeded(4)))
    i = changed(out, image).flatten(1).any(dim=1).nonzero()[1].item()
    others = torch.arange(12) != i
    image2, kp2d2, valid2 = image.clone(), kp2d.clone(), valid.clone()
    image2[others], kp2d2[others], valid2[others] = 0.5, 0.0, False
    again = part(image2, kp2d2, valid2, seeded(3))
    if name == "batch":  # the place is the sample's own all the same
        assert torch.equal(changed(again, image2)[i], changed(out, image)[i])
        assert not torch.equal(again[i], out[i])
    else:
        assert torch.equal(again[i], out[i])


def shapes(n: int, seed: int = 0, area: tuple[float, float] = (0.04, 0.2)):
    g = seeded(seed)
    u = torch.rand(n, 6, generator=g)
    return u, *draw_sides(u, torch.rand(n, SIDES, generator=g), area)


def test_shapes_hold_their_joint_and_have_the_area_that_was_drawn():
    u, normals, reach = shapes(300)
    assert (reach > 0).all()
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(300, SIDES))
    alpha = cover(192, torch.zeros(300, 2), normals, reach, soft_px=1e-3)
    border = torch.cat([alpha[..., [0, -1], :].flatten(1), alpha[..., [0, -1]].flatten(1)], dim=1)
    whole = (border == 0).all(dim=1)
    share = alpha.mean(dim=(1, 2, 3))
    drawn = 0.04 * 5 ** u[:, 1]
    kind = (3 * u[:, 0]).long()
    # A regular polygon of 16 sides about a circle is larger by tan(pi/16) / (pi/16) = 1.013, one
    # about an ellipse by a little more.
    for number, factor, tolerance in ((0, 1.02, 0.015), (1, 1.0, 0.45), (2, 1.0, 0.01)):
        some = whole & (kind == number)
        assert some.sum() > 20
        ratio = share[some] / drawn[some]
        assert (ratio - factor).abs().max() < tolerance
        assert ratio.mean() == pytest.approx(factor, abs=0.03)
    # bars are three to six times as long as wide
    bar = kind == 2
    width = (reach + reach.roll(SIDES // 2, dims=1))[bar][:, [0, SIDES // 4]]
    ratio = width[:, 0] / width[:, 1]
    assert ratio.min() >= 3 - 1e-3
    assert ratio.max() <= 6 + 1e-3


def test_a_square_shrinks_just_so_far_that_it_spares_enough_joints():
    # A square of half side 1 about joint 0; the others lie at maximum norms 0.2, 0.5, 0.8 and 2.
    angle = torch.arange(SIDES) * (2 * math.pi / SIDES)
    normals = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    reach = normals.abs().sum(dim=-1)
    reach[:, :: SIDES // 4] = 1.0
    offsets = torch.zeros(1, 21, 2)
    offsets[0, 1:5] = torch.tensor([[0.2, 0.1], [-0.1, -0.5], [0.8, 0.7], [0.0, 2.0]])
    seen = torch.arange(21)[None] < 5

    def factor(share, spare=0.0):
        return shrinking(offsets, seen, normals, reach, share, spare).item()

    assert factor(1.0) == 1.0
    assert factor(0.8) == 1.0  # four of five: the fifth is outside already
    assert factor(0.6) == pytest.approx(0.8)
    assert factor(0.59) == pytest.approx(0.5)
    assert factor(0.59, spare=0.1) == pytest.approx(0.4)
    assert factor(0.2) == pytest.approx(0.2)
    assert factor(0.2, spare=0.3) == 0.0
    assert factor(0.19) == 0.0  # not even the joint it lies on
    assert shrinking(offsets, seen & False, normals, reach, 0.2, 0.1).item() == 1.0


@pytest.mark.parametrize("max_joints", [0.1, 0.3, 0.5, 1.0])
def test_never_more_joints_are_covered_than_allowed_and_always_some(max_joints):
    n, side = 200, 96
    g = seeded(7)
    kp2d = 0.3 * torch.randn(n, 21, 2, generator=g)
    valid = torch.rand(n, 21, generator=g) > 0.1
    paste = OccluderPaste(prob=1.0, area=(0.1, 0.4), max_joints=max_joints, texture="noise")
    _, seen = pick_joint(kp2d, valid, torch.zeros(len(kp2d)))
    # A image of a negative colour, so that whatever is painted shows, however thinly.
    on = (paste(torch.full((n, 3, side, side), -9.0), kp2d, valid, seeded(2)) > -9).any(dim=1)
    allowed = (seen.sum(dim=1) * max_joints + 1e-4).long()
    covered = (hit(on, kp2d) & seen).sum(dim=1)
    assert (covered <= allowed).all()
    assert (covered == allowed).any()
    assert (covered > 0).float().mean() > 0.95  # the rest have no room for half a pixel
    if max_joints >= 0.5:
        assert covered.float().mean() > 2


def test_the_border_is_soft_and_lies_inside():
    # Upright square of half side 0.5 in 20 px: the outermost pixels inside are 0.5 px deep.
    angle = torch.arange(SIDES) * (2 * math.pi / SIDES)
    normals = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    reach = torch.full((1, SIDES), 9.0)
    reach[:, :: SIDES // 4] = 0.5
    alpha = cover(20, torch.zeros(1, 2), normals, reach, soft_px=2.0)[0, 0]
    wanted = torch.tensor([0.0] * 5 + [0.25, 0.75] + [1.0] * 6 + [0.75, 0.25] + [0.0] * 5)
    torch.testing.assert_close(alpha[10], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(alpha[:, 10], wanted, atol=1e-5, rtol=0)
    at = cell_centres_ndc(20)
    moved = cover(20, torch.tensor([[0.2, 0.0]]), normals, reach, soft_px=2.0)[0, 0]
    torch.testing.assert_close((moved.sum(0) * at).sum() / moved.sum(), torch.tensor(0.2))


def test_textures_come_from_another_picture_or_from_none():
    n = 16
    image = (torch.arange(n) / n)[:, None, None, None].expand(n, 3, SIDE, SIDE).contiguous()
    marked = image.clone()
    marked[:, 1:] = 0.0  # tints scale: what lacks green and blue stays so
    kp2d, valid = hands(n)
    out = OccluderPaste(prob=1.0, texture="batch")(marked, kp2d, valid, seeded())
    assert (out[:, 1:] == 0).all()
    assert (out <= 1).all()
    # of a batch of one the texture is its own, of two the other's
    lone = OccluderPaste(prob=1.0)(marked[8:9], kp2d[8:9], valid[8:9], seeded())
    assert (lone[:, 0] >= 0.5 * 0.4 - 1e-6).all()
    black_and_white = torch.stack([torch.zeros(3, SIDE, SIDE), torch.ones(3, SIDE, SIDE)])
    two = OccluderPaste(prob=1.0)(black_and_white, kp2d[:2], valid[:2], seeded())
    assert two[0].max() > 0.39
    assert two[1].min() == 0.0
    noise = OccluderPaste(prob=1.0, texture="noise")(torch.zeros_like(out), kp2d, valid, seeded())
    assert noise.flatten(1).std(dim=1).min() > 0
    assert noise.min() >= 0
    assert noise.max() <= 1


@pytest.mark.parametrize(
    ("make", "settings", "word"),
    [
        (HandCutOut, {"prob": 1.2}, r"prob must be in \[0, 1\], got 1.2"),
        (HandCutOut, {"area": (0.2, 0.1)}, r"area must be .*, got \(0.2, 0.1\)"),
        (HandCutOut, {"area": (0.2, 1.1)}, r"area must be .* high <= 1, got"),
        (HandCutOut, {"aspect": (0.0, 1.0)}, "aspect must"),
        (HandCutOut, {"fill": "black"}, r"fill must .* got 'black'"),
        (HandCutOut, {"fill": 255}, r"grey in \[0, 1\], got 255"),
        (OccluderPaste, {"prob": -0.1}, "prob must"),
        (OccluderPaste, {"area": (0.0, 0.1)}, "area must"),
        (OccluderPaste, {"max_joints": 0.0}, "max_joints must be > 0, got 0.0"),
        (OccluderPaste, {"max_joints": 1.5}, "max_joints must"),
        (OccluderPaste, {"texture": "wood"}, r"texture must .* got 'wood'"),
        (OccluderPaste, {"border_px": 0.0}, "border_px must"),
    ],
)
def test_bad_settings_are_named(make, settings, word):
    with pytest.raises(ValueError, match=word):
        make(**settings)
