"""Labelled crops to model input, for a whole batch on the device: crops whose pixels and labels
share one affine map, and occlusion by cut-outs and pasted objects, which changes no label.

All randomness comes from the CPU generator. A pasted shape is { p : n_k . (p - joint) <= reach_k
for all k } with the joint inside it, in ndc.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.data.pixels import ColourJitter, sample_views
from handmim.geometry.camera import cell_centres_ndc
from handmim.geometry.crop import homogeneous, invert, px_from_px, similarity, transform_points
from handmim.geometry.rotation import rotation_about_z
from handmim.types import HandBatch, StepInfo
from handmim.utils.arguments import above, interval, one_of, shares

FILLS = ("mean", "noise")
# Factors on the colours of textures from the batch: else an object cut from a plain background
# would look like more of it, and a covered finger like a missing one.
TINT = (0.4, 1.2)
NOISE_CELLS = 12  # of procedural texture, along a side
SIDES = 16  # of every shape: enough for a smooth ellipse; four of them make a bar
OFF_CENTRE = 0.6  # the joint lies within this share of the shape's half axes
# Sides of polygons lie so many times as far off as an ellipse's: about the same area on average.
IRREGULAR = (0.8, 1.4)


def transform_labels(
    batch: HandBatch, crop_px: int, source_from_crop: Tensor, angle_rad: Tensor
) -> HandBatch:
    """Carry all labels along to a crop of side crop_px by [B, 2, 3] new ndc -> stored ndc, of
    scale, rotation angle_rad [B] and shift; the image stays.

    The camera is rotated about its optical axis with the image, so K X / z = pixel holds before and
    after: K' = M K R_z(angle), X' = R_z(-angle) X with M the pixel map of the crop.
    """
    R = rotation_about_z(-angle_rad.to(source_from_crop.device))  # [B, 3, 3]
    crop_from_source = invert(source_from_crop)
    px_map = homogeneous(px_from_px(crop_from_source, crop_px, batch.image.shape[-1]))
    root = (R @ batch.rotmats[:, 0]).unsqueeze(1)
    return batch._replace(
        K_crop_px=px_map @ batch.K_crop_px @ R.transpose(1, 2),
        kp2d_crop_ndc=transform_points(crop_from_source, batch.kp2d_crop_ndc),
        joints_cam_m=batch.joints_cam_m @ R.transpose(1, 2),
        verts_cam_m=batch.verts_cam_m @ R.transpose(1, 2),
        rotmats=torch.cat([root, batch.rotmats[:, 1:]], dim=1),
    )


def log_uniform(u: Tensor, low: float, high: float) -> Tensor:
    """[0, 1) to [low, high), evenly in the logarithm."""
    return low * (high / low) ** u


def draw_sides(u: Tensor, irregular: Tensor, area: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Ellipses, irregular polygons and bars, one third each, as the half planes they are cut from:
    unit normals [n, SIDES, 2] and reach [n, SIDES] > 0 in ndc. u [n, 6] are uniform numbers for
    kind, area, stretch, angle, and where in the shape the joint lies."""
    kind, is_bar = (3 * u[:, 0]).long(), u[:, 0] >= 2 / 3
    half_area = log_uniform(u[:, 1], *area) * torch.where(is_bar, 1.0, 4 / math.pi)
    stretch = torch.where(is_bar, 3 * 2 ** u[:, 2], 2 ** u[:, 2])  # bars are 3 to 6 times as long
    axes = torch.stack([(half_area * stretch).sqrt(), (half_area / stretch).sqrt()], dim=1)
    angle = torch.arange(SIDES, device=u.device) * (2 * math.pi / SIDES)
    own = torch.stack([angle.cos(), angle.sin()], dim=1)  # [SIDES, 2] along the shape's own axes
    along = axes[:, None] * own
    support = torch.where(is_bar[:, None], along.abs().sum(dim=-1), along.norm(dim=-1))
    low, high = IRREGULAR
    polygon = support * (low + (high - low) * irregular)
    support = torch.where((kind == 1)[:, None], polygon, support)
    direction = 2 * math.pi * u[:, 5]
    joint = torch.stack([direction.cos(), direction.sin()], dim=1) * OFF_CENTRE * u[:, 4:5].sqrt()
    reach = support - (along * joint[:, None]).sum(dim=-1)
    rotation = similarity(torch.ones_like(direction), math.pi * u[:, 3], torch.zeros_like(axes))
    return transform_points(rotation, own.expand(len(u), -1, -1)), reach


def shrinking(
    offsets: Tensor, is_seen: Tensor, normals: Tensor, reach: Tensor, share: float, spare: float
) -> Tensor:
    """Factors [n] in [0, 1] by which shapes of `draw_sides` shrink so as to cover no more than the
    `share` of the joints that are seen [n, 21], at offsets [n, 21, 2] from the covered.

    Joint j is farther than `spare` from a shape that shrinks towards a point inside it below the
    factor g_j = max_k (n_k . offset_j - spare) / reach_k. Of m seen joints floor(share m) may be
    nearer: the factor is the next smallest g, at most 1, or 0 where there is no such shape.
    """
    along = (offsets.unsqueeze(2) * normals.unsqueeze(1)).sum(dim=-1)  # [n, 21, SIDES]
    free_below = ((along - spare) / reach[:, None]).amax(dim=-1)
    ranked = free_below.masked_fill(~is_seen, math.inf).sort(dim=1).values
    ranked = torch.cat([ranked, torch.full_like(ranked[:, :1], math.inf)], dim=1)
    allowed = (is_seen.sum(dim=1) * share + 1e-4).long()
    return ranked.gather(1, allowed[:, None]).squeeze(1).clamp(0, 1)


def cover(
    side_px: int, joint_ndc: Tensor, normals: Tensor, reach: Tensor, soft_px: float
) -> Tensor:
    """Opacity [n, 1, side, side] of shapes about joints [n, 2], cut by normals [n, SIDES, 2] at
    reach [n, SIDES]: 0 outside, rising to 1 over `soft_px` from their border inwards."""
    at = cell_centres_ndc(side_px, reach.device)
    reach = reach + (normals * joint_ndc[:, None]).sum(dim=-1)  # from the crop's centre
    depth = torch.full((len(reach), side_px, side_px), math.inf, device=reach.device)
    here = torch.empty_like(depth)
    for side in range(SIDES):
        normal = normals[:, side, :, None]
        down = reach[:, side, None] - normal[:, 1] * at  # [n, H]
        torch.sub(down[:, :, None], (normal[:, 0] * at)[:, None], out=here)
        torch.minimum(depth, here, out=depth)
    return depth.mul_(side_px / (2 * soft_px)).clamp_(0, 1).unsqueeze(1)


def pick_joint(kp2d_crop_ndc: Tensor, kp2d_valid: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """One [B, 2] of the labelled joints in the image, by u [B] in [0, 1), or the crop's centre
    where there is none; and which are in it: of [B, 21, 2] and [B, 21] bool, [B, 21] bool."""
    is_seen = kp2d_valid & (kp2d_crop_ndc.abs() < 1).all(dim=-1)
    rank = is_seen.long().cumsum(dim=1)
    number = (u * rank[:, -1]).long() + 1
    chosen = is_seen & (rank == number[:, None])
    return torch.where(chosen.unsqueeze(-1), kp2d_crop_ndc, 0.0).sum(dim=1), is_seen


@dataclass(kw_only=True, eq=False)
class HandCutOut:
    """A rectangle about a random joint is erased, as in random erasing (Zhong et al. 2020, arXiv
    1708.04896), but where the hand is; about the crop's centre without a joint in the image. Its
    centre lies off the joint by up to half of its half sides."""

    prob: float = 0.3  # share of samples
    area: Sequence[float] = (0.02, 0.12)  # share of the crop, before its border cuts it
    aspect: Sequence[float] = (0.5, 2.0)  # width / height, log-uniform
    fill: str | float = "mean"  # of the image, uniform "noise" per pixel, or a grey in [0, 1]

    def __post_init__(self) -> None:
        shares(prob=self.prob)
        is_grey = isinstance(self.fill, int | float) and 0.0 <= self.fill <= 1.0
        if not (is_grey or self.fill in FILLS):
            raise ValueError(f"fill must be one of {FILLS} or a grey in [0, 1], got {self.fill!r}")
        interval("area", self.area, 1.0)
        interval("aspect", self.aspect)

    def __call__(
        self, image: Tensor, kp2d_crop_ndc: Tensor, kp2d_valid: Tensor, generator: torch.Generator
    ) -> Tensor:
        """A copy of crops [B, 3, H, W] in [0, 1] with rectangles."""
        u = torch.rand(len(image), 6, generator=generator)
        rows = (u[:, 0] < self.prob).nonzero().squeeze(1)
        if not len(rows):
            return image
        rows, u = rows.to(image.device), u[rows].to(image.device)
        chosen = image[rows]
        if self.fill == "noise":
            paint = torch.rand(chosen.shape, generator=generator).to(image)
        elif self.fill == "mean":
            paint = chosen.mean(dim=(-2, -1), keepdim=True)
        else:
            paint = torch.full_like(chosen[:, :, :1, :1], float(self.fill))
        joint, _ = pick_joint(kp2d_crop_ndc[rows], kp2d_valid[rows], u[:, 1])
        share, aspect = log_uniform(u[:, 2], *self.area), log_uniform(u[:, 3], *self.aspect)
        half = (share[:, None] * torch.stack([aspect, 1 / aspect], dim=1)).sqrt()  # the crop's is 1
        centre = joint + (u[:, 4:] - 0.5) * half
        at = cell_centres_ndc(image.shape[-1], image.device)
        inside = (at - centre[..., None]).abs() < half[..., None]  # [n, 2, W]
        is_cut = (inside[:, 1, :, None] & inside[:, 0, None, :]).unsqueeze(1)
        return image.index_copy(0, rows, torch.where(is_cut, paint, chosen))


@dataclass(kw_only=True, eq=False)
class OccluderPaste:
    """An opaque object before the hand: an ellipse, an irregular polygon or a bar in any direction.

    It covers a random joint and shrinks towards it until it covers, to the pixel, no more of the
    joints in the image than allowed; where there is none it lies about the crop's centre.
    """

    prob: float = 0.3  # share of samples
    area: Sequence[float] = (0.04, 0.2)  # share of the crop, before shrinking and its border
    max_joints: float = 0.5  # share of the labelled joints in the image that may be covered
    texture: str = "batch"  # tinted part of another sample's image, or "noise": blotches
    border_px: float = 1.5  # width of the soft border

    def __post_init__(self) -> None:
        shares(prob=self.prob, max_joints=self.max_joints)
        above(0, max_joints=self.max_joints, border_px=self.border_px)
        one_of("texture", self.texture, ("batch", "noise"))
        interval("area", self.area, 1.0)

    def __call__(
        self, image: Tensor, kp2d_crop_ndc: Tensor, kp2d_valid: Tensor, generator: torch.Generator
    ) -> Tensor:
        """A copy of crops [B, 3, H, W] in [0, 1] behind objects."""
        b = len(image)
        u = torch.rand(b, 12, generator=generator)
        irregular = torch.rand(b, SIDES, generator=generator)
        rows = (u[:, 0] < self.prob).nonzero().squeeze(1)
        if not len(rows):
            return image
        source = self._source(image, rows, generator)
        rows, u, irregular = (x.to(image.device) for x in (rows, u[rows], irregular[rows]))
        kp2d = kp2d_crop_ndc[rows]
        joint, is_seen = pick_joint(kp2d, kp2d_valid[rows], u[:, 1])
        normals, reach = draw_sides(u[:, 2:8], irregular, self.area)
        side, offsets = image.shape[-1], kp2d - joint[:, None]
        spare = 1.5 / side  # 0.75 px: the pixel of a free joint stays as it is
        factor = shrinking(offsets, is_seen, normals, reach, self.max_joints, spare)
        alpha = cover(side, joint, normals, reach * factor[:, None], self.border_px)
        # A part of the source about a third to two thirds as wide, rotated by any angle.
        part = similarity(0.35 + 0.3 * u[:, 8], 2 * math.pi * u[:, 9], u[:, 10:] - 0.5)
        texture = sample_views(source, part, side)
        return image.index_copy(0, rows, torch.lerp(image[rows], texture, alpha))

    def _source(self, image: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[n, 3, S, S] images that textures of the chosen rows are cut from."""
        b, n = len(image), len(rows)
        colour = torch.rand(n, 3, 1, 1, generator=generator)
        if self.texture == "batch":
            u = torch.rand(n, generator=generator)
            step = 1 + (u * (b - 1)).long()  # 1 .. B - 1: never the sample itself
            other = image[((rows + step) % b).to(image.device)]
            return (other * log_uniform(colour, *TINT).to(image)).clamp(0, 1)
        blotches = torch.rand(n, 3, NOISE_CELLS, NOISE_CELLS, generator=generator)
        return (0.7 * colour + 0.3 * blotches).to(image)


@dataclass(kw_only=True, eq=False)
class HandAugment:
    """Random (or, for evaluation, fixed) crop of every labelled image."""

    img_px: int  # side of the model input
    scale: Sequence[float] = (0.8, 1.0)  # side of the crop, log-uniform; evaluation takes the mean
    rotation_deg: float = 30.0  # +- this, of `rotation_prob` of the samples
    rotation_prob: float = 1.0
    shift_ndc: float = 0.08  # of the crop's centre, +-
    colour: ColourJitter | None = None
    cut_out: HandCutOut | None = None  # rectangles erased last; training only
    occluder: OccluderPaste | None = None  # lit and blurred with the hand; training only

    def __post_init__(self) -> None:
        self.scale = interval("scale", self.scale)

    def cut(self, stored: Tensor, source_from_crop: Tensor) -> Tensor:
        """The model's images [B, 3, img_px, img_px] in [0, 1] out of stored crops [B, 3, S, S]
        uint8; source_from_crop [B, 2, 3] is new ndc -> stored ndc."""
        source = stored.float() / 255.0
        # Sampling reads four pixels: crops much larger than the input are shrunk by area before.
        stored_px = source.shape[-1]
        shrink = int(self.scale[0] * stored_px / self.img_px)
        if shrink > 1:
            source = F.interpolate(source, size=(stored_px // shrink,) * 2, mode="area")
        return sample_views(source, source_from_crop, self.img_px)

    def __call__(self, batch: HandBatch, generator: torch.Generator, info: StepInfo) -> HandBatch:
        """Random crop for training; all randomness comes from the CPU generator."""
        u = torch.rand(len(batch.image), 5, generator=generator) * 2 - 1
        low, high = self.scale
        scale = torch.exp(math.log(low) + (u[:, 0] + 1) / 2 * math.log(high / low))
        rotated = (u[:, 4] + 1) / 2 < self.rotation_prob
        angle = u[:, 1] * math.radians(self.rotation_deg) * rotated
        source_from_crop = similarity(scale, angle, u[:, 2:4] * self.shift_ndc)
        source_from_crop = source_from_crop.to(batch.image.device)
        out = transform_labels(batch, self.img_px, source_from_crop, angle)
        image, kp2d = self.cut(batch.image, source_from_crop), (out.kp2d_crop_ndc, out.kp2d_valid)
        if self.occluder is not None:
            image = self.occluder(image, *kp2d, generator)
        if self.colour is not None:
            image = self.colour(image, generator)
        if self.cut_out is not None:
            image = self.cut_out(image, *kp2d, generator)
        return out._replace(image=image)

    def evaluate(
        self, batch: HandBatch, angle_rad: float = 0.0, scale: float = 1.0, with_image: bool = True
    ) -> HandBatch:
        """The fixed crop of evaluation: mean scale, upright, centred, untouched pixels; or rotated
        about its centre, its side `scale` times as long. Without `with_image`, its labels beside
        the stored image."""
        b = len(batch.image)
        side, angle = torch.full((b,), self.evaluation_scale * scale), torch.full((b,), angle_rad)
        source_from_crop = similarity(side, angle, torch.zeros(b, 2)).to(batch.image.device)
        labels = transform_labels(batch, self.img_px, source_from_crop, angle)
        if not with_image:
            return labels
        return labels._replace(image=self.cut(batch.image, source_from_crop))

    def evaluate_images(self, stored: Tensor) -> Tensor:
        """The plain evaluation crops [B, 3, img_px, img_px] in [0, 1] of crops without labels,
        [B, 3, S, S] uint8."""
        side, no = torch.full((len(stored),), self.evaluation_scale), torch.zeros(len(stored))
        return self.cut(stored, similarity(side, no, torch.zeros(len(stored), 2)).to(stored.device))

    @property
    def evaluation_scale(self) -> float:
        """Side of the evaluation crop relative to the stored one."""
        return math.sqrt(self.scale[0] * self.scale[1])
