"""Views of an unlabelled crop with exact geometry and their masks, planned for a whole batch, then
made of pixels.

Every view is one resampling of the stored crop by an affine map and, optionally, a smooth warp. A
similarity that all views of a sample share moves the crop first; the losses never see it, so
framing gives no cue for the map between two views.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor

from handmim.data.pixels import (
    PADDINGS,
    ColourJitter,
    PlannedCrops,
    PlannedViews,
    as_float,
    make_views,
)
from handmim.engine.optim import Schedule, as_schedule
from handmim.geometry.crop import bounded, compose, similarity
from handmim.types import CropBatch, PretrainBatch, StepInfo
from handmim.utils.arguments import at_least, below_one, interval, one_of, shares

RNG = np.random.Generator
Pair = tuple[int, int]  # height and width, or samples and views of each
AnyCrops = CropBatch | PlannedCrops | PretrainBatch
CENTRE_STD = 0.15  # of the centres of hand-centred blocks, in sides of the image
MIN_ASPECT = 0.3  # aspect ratios of blocks are log-uniform in [MIN_ASPECT, 1 / MIN_ASPECT]


def block_mask(
    grid_hw: Pair, num_masked: int, rng: RNG, centre_bias: float = 0, exact: bool = False
) -> NDArray[np.bool_]:
    """Rectangles of about `num_masked` > 0 patches (BEiT, Bao et al. 2022, arXiv 2106.08254): [h,
    w] bool with at least one and at most so many; `exact` masks single patches for the rest."""
    h, w = grid_hw
    mask = np.zeros((h, w), dtype=bool)
    min_block = min(max(1, (min(h, w) // 3) ** 2), num_masked)
    log_aspect = math.log(MIN_ASPECT)
    count = 0
    while count < num_masked:
        for _ in range(10):
            area = rng.uniform(min_block, max(min_block, num_masked - count))
            aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
            bh, bw = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (1 <= bh <= h and 1 <= bw <= w):
                continue
            if centre_bias > 0 and rng.random() < centre_bias:
                centres = [side * (0.5 + CENTRE_STD * rng.standard_normal()) for side in grid_hw]
                spans = zip(centres, (bh, bw), grid_hw, strict=True)
                top, left = (min(max(round(c - n / 2), 0), side - n) for c, n, side in spans)
            else:
                top, left = int(rng.integers(0, h - bh + 1)), int(rng.integers(0, w - bw + 1))
            block = mask[top : top + bh, left : left + bw]
            new = block.size - int(block.sum())
            if 0 < new <= num_masked - count:
                block[:] = True
                count += new
                break
        else:
            break
    missing = num_masked - count if exact else int(count == 0)
    if missing:
        mask.flat[rng.permutation(np.flatnonzero(~mask))[:missing]] = True
    return mask


@dataclass(kw_only=True, eq=False)
class MaskSampler:
    """Draw masks for a batch of views. A fixed share of the views is masked; their ratios fill
    [low, high] evenly, so that every batch has light and heavy masks (as in DINOv2)."""

    shape: str = "block"  # or "random"
    ratio: Sequence[float | Schedule] = (0.1, 0.5)  # of masked patches; a schedule is the highest
    masked_share: float = 0.5  # of the views; of the samples where `masked_views` is "one"
    masked_views: str = "all"  # "one" of a chosen sample: another view shows what is masked in it
    centre_bias: float = 0.0  # share of the blocks that lie around the image's middle
    exact_count: bool = False  # one ratio per batch, as dropping masked patches requires

    def __post_init__(self) -> None:
        one_of("shape", self.shape, ("block", "random"))
        one_of("masked_views", self.masked_views, ("all", "one"))
        shares(masked_share=self.masked_share, centre_bias=self.centre_bias)
        (low, high), got = self.ratio, f"got ratio={list(self.ratio)}"
        if isinstance(low, Schedule):
            raise ValueError(f"only the highest ratio may be a schedule, {got}")
        self.low, self.high = low, as_schedule(high)
        for end in (self.high.start, self.high.start if self.high.end is None else self.high.end):
            if not 0.0 <= low <= end < 1.0:
                raise ValueError(f"ratio must be [low, high] with 0 <= low <= high < 1, {got}")
        if self.centre_bias > 0 and self.shape != "block":
            raise ValueError(f"centre_bias={self.centre_bias} requires shape=block")

    def __call__(
        self, shape: Pair, grid_hw: Pair, generator: torch.Generator, info: StepInfo
    ) -> Tensor:
        """Masks [B, G, N] bool on the CPU of (B, G) views, N = h * w row by row."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        num_patches = grid_hw[0] * grid_hw[1]
        num_samples, num_views = shape
        masks = np.zeros((num_samples * num_views, num_patches), dtype=bool)
        if self.masked_views == "all":
            num = round(len(masks) * self.masked_share)
            chosen = rng.permutation(len(masks))[:num]
        else:
            samples = rng.permutation(num_samples)[: round(num_samples * self.masked_share)]
            view = (np.arange(len(samples)) + rng.integers(num_views)) % num_views
            chosen = samples * num_views + view
        if len(chosen):
            masks[chosen] = self._draw(len(chosen), grid_hw, rng, info)
        return torch.from_numpy(masks).unflatten(0, shape)

    def _draw(self, num: int, grid_hw: Pair, rng: RNG, info: StepInfo) -> NDArray[np.bool_]:
        num_patches = grid_hw[0] * grid_hw[1]
        high = max(self.low, self.high(info.step, info.total_steps))  # it may warm up from below
        within = rng.random(1 if self.exact_count else num)
        position = np.full(num, within[0]) if self.exact_count else (np.arange(num) + within) / num
        ratios = self.low + (high - self.low) * position
        # at least one patch is masked and one is not
        counts = np.rint(ratios * num_patches).astype(np.int64).clip(1, max(1, num_patches - 1))
        if self.shape == "random":
            order = rng.random((num, num_patches)).argsort(axis=1)
            masks = np.empty(order.shape, dtype=bool)
            np.put_along_axis(masks, order, np.arange(num_patches) < counts[:, None], axis=1)
            return masks
        how = self.centre_bias, self.exact_count
        blocks = [block_mask(grid_hw, count, rng, *how) for count in counts.tolist()]
        return np.stack(blocks).reshape(num, num_patches)


@dataclass(kw_only=True, eq=False)
class ViewMaker:
    """uint8 crops to augmented views, their maps and their masks. Lengths are in ndc, where the
    crop is [-1, 1]^2; probabilities are per view."""

    view_px: int
    patch_px: int  # masks have (view_px / patch_px)^2 patches
    masks: MaskSampler
    colour: ColourJitter  # one draw per view
    colour_later: Mapping[str, float] | None = None  # what differs from it in the later views
    num_views: int = 2
    scale: Sequence[float] = (0.55, 0.95)  # side of a view relative to the crop, log-uniform
    rotation_deg: float = 45.0  # +- this, as shifts and aspect
    full_rotation_prob: float = 0.1  # of rotations by up to +- 180 degrees
    shift_ndc: float = 0.12
    aspect: float = 0.0  # relative stretch of one axis
    flip_prob: float = 0.0  # a mirrored right hand looks like a left one
    warp_ndc: float = 0.0  # spread of the control values of a smooth known warp; 0 is none
    warp_grid: int = 4  # control values per axis
    shared_rotation_deg: float = 30.0  # of the similarity shared by the views of a sample
    shared_full_rotation_prob: float = 0.0
    shared_scale: float = 0.1
    shared_shift_ndc: float = 0.1
    partner_prob: float = 0.0  # of samples whose later views are cut from the crop's partner
    padding: str = "reflection"  # what lies outside the crop, a key of `PADDINGS`
    keep_clean: bool = False  # also keep the views before colour augmentation
    num_local: int = 0  # small crops for the class losses, never warped
    local_px: int = 96
    local_scale: Sequence[float] = (0.2, 0.55)
    local_shift_ndc: float = 0.4
    augment_on: str = "auto"  # "cpu" (OpenCV, where data is loaded), "device" (torch), by device

    def __post_init__(self) -> None:
        names = ("full_rotation_prob", "flip_prob", "shared_full_rotation_prob", "partner_prob")
        shares(**{name: getattr(self, name) for name in names})
        below_one(aspect=self.aspect, shared_scale=self.shared_scale)
        at_least(0, num_local=self.num_local, warp_ndc=self.warp_ndc)
        at_least(2, num_views=self.num_views, warp_grid=self.warp_grid)
        one_of("padding", self.padding, PADDINGS)
        one_of("augment_on", self.augment_on, ("auto", "cpu", "device"))
        for name in ("view_px", "local_px") if self.num_local else ("view_px",):
            side = getattr(self, name)
            if side < self.patch_px or side % self.patch_px:
                raise ValueError(f"{name}={side} is no multiple of the patch, {self.patch_px} px")
        interval("scale", self.scale)
        interval("local_scale", self.local_scale)
        later = self.colour_later
        self.later = None if later is None else replace(self.colour, **later)

    def draw_views(
        self, shape: Pair, generator: torch.Generator, scale: Sequence[float], shift_ndc: float
    ) -> Tensor:
        """Maps [*shape, 2, 3] = [ s R(r) diag(f, a) | t ] of views, drawn on the CPU: s log-uniform
        in `scale`, t within +- shift_ndc, a within 1 +- aspect, f = -1 where mirrored."""
        u = torch.rand(*shape, 6, generator=generator) * 2 - 1
        low, high = scale
        size = torch.exp(math.log(low) + (u[..., 0] + 1) / 2 * math.log(high / low))
        full = (u[..., 5] + 1) / 2 < self.full_rotation_prob
        angle = u[..., 1] * torch.where(full, math.pi, math.radians(self.rotation_deg))
        maps = similarity(size, angle, u[..., 2:4] * shift_ndc, 1 + self.aspect * u[..., 4])
        if self.flip_prob > 0:
            flipped = torch.rand(shape, generator=generator) < self.flip_prob
            maps[..., 0] *= torch.where(flipped, -1.0, 1.0)[..., None]
        return maps

    def draw_shared(self, num_crops: int, generator: torch.Generator) -> Tensor:
        """crop_from_source [B, 2, 3], the similarity shared by the views of a sample."""
        u = torch.rand(num_crops, 4, generator=generator) * 2 - 1
        reach = torch.full((num_crops,), math.radians(self.shared_rotation_deg))
        if self.shared_full_rotation_prob > 0:
            is_full = torch.rand(num_crops, generator=generator) < self.shared_full_rotation_prob
            reach[is_full] = math.pi
        shift = self.shared_shift_ndc * u[:, 2:]
        return similarity(1 + self.shared_scale * u[:, 0], reach * u[:, 1], shift)

    def draw(self, crops: CropBatch, generator: torch.Generator, info: StepInfo) -> PlannedCrops:
        """All random choices for a batch's views, on the CPU. Raises: ValueError for data without
        partners where they are required."""
        b, v, side = len(crops.image), self.num_views, self.view_px // self.patch_px
        source_from_view = self.draw_views((b, v), generator, self.scale, self.shift_ndc)
        crop_from_source = self.draw_shared(b, generator)[:, None]
        is_masked = self.masks((b, v), (side, side), generator, info)
        warps: Tensor | None = None
        if self.warp_ndc > 0:
            grid = self.warp_grid, self.warp_grid
            warps = bounded(torch.randn(b, v, 2, *grid, generator=generator) * self.warp_ndc)
        source, partner = torch.arange(b)[:, None].repeat(1, v), crops.partner
        if self.partner_prob > 0:
            if partner is None:
                raise ValueError(
                    f"partner_prob={self.partner_prob} requires partners and the data has none: "
                    "views.partner_prob=0, or data=freihand data.partners=true"
                )
            is_other = torch.rand(b, generator=generator) < self.partner_prob
            source[:, 1:] += b * is_other[:, None]
        else:
            partner = None
        local: PlannedViews | None = None
        if self.num_local:
            shape, size = (b, self.num_local), (self.local_px, self.local_px)
            maps = self.draw_views(shape, generator, self.local_scale, self.local_shift_ndc)
            plan = self.colour.draw(b * self.num_local, size, generator)
            of = torch.arange(b).repeat_interleave(self.num_local)
            maps = compose(crop_from_source, maps)
            local = PlannedViews(maps, of, self.local_px, None, (plan,), self.padding, False)
        later, size = self.later, (self.view_px, self.view_px)
        first = self.colour.draw(b * v if later is None else b, size, generator)
        colours = (first,) if later is None else (first, later.draw(b * (v - 1), size, generator))
        maps = compose(crop_from_source, source_from_view)
        how = self.padding, self.keep_clean
        views = PlannedViews(maps, source.flatten(), self.view_px, warps, colours, *how)
        fields = {
            "source_from_view": source_from_view,
            "is_masked": is_masked,
            "displacement_ndc": warps,
            "group": crops.group,
            "known_masked_idx": is_masked.flatten().nonzero().squeeze(1),
            "num_masked": tuple(is_masked.flatten(1).sum(dim=1).tolist()),
        }
        return PlannedCrops(crops._replace(partner=partner), views, local, fields)

    def host_part(self, device: torch.device) -> Callable[..., PlannedCrops | PretrainBatch]:
        """The work on collated crops that loading processes do before `device` gets them: uint8
        views where OpenCV makes them, else the plan of views."""
        on_cpu = self.augment_on == "cpu" or (self.augment_on == "auto" and device.type == "cpu")
        return self.on_host if on_cpu else self.draw

    def on_host(
        self, crops: CropBatch, generator: torch.Generator, info: StepInfo
    ) -> PretrainBatch:
        """Views of crops on the CPU, as uint8: `__call__` makes them float."""
        return make_views(self.draw(crops, generator, info), on_cpu=True)

    def __call__(
        self, batch: AnyCrops, generator: torch.Generator, info: StepInfo
    ) -> PretrainBatch:
        """Views as float in [0, 1] on the device of crops, or of the result of `host_part`; those
        of crops depend on nothing but the CPU generator and the step."""
        if isinstance(batch, CropBatch):
            device = batch.image.device
            if device.type == "cpu":
                batch = self.host_part(device)(batch, generator, info)
            else:
                plan = self.draw(batch, generator, info)
                batch = PlannedCrops(*move_data_to_device(plan, device))
        if isinstance(batch, PretrainBatch):
            return as_float(batch)
        return make_views(batch, on_cpu=False)
