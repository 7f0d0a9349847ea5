"""Views of an unlabeled crop with exact geometry, made for a whole batch at once on the device.

Every view is one resampling of the stored crop by an affine map and, where asked for, a smooth
warp. A hidden similarity turns the crop first and is the same for all views of a sample: it is
never told to the network, so that borders and framing give no cue for the map it has to find.
Pixels and points share the same maps and fields.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.contracts import CropBatch, PretrainBatch, StepInfo
from handmim.data.colour import ColourJitter
from handmim.data.masking import MaskSampler
from handmim.data.view_maps import draw_hidden, draw_views, draw_warps
from handmim.geometry.crop import compose
from handmim.geometry.warp import pixels_in_source

PADDINGS = ("reflection", "zeros", "border")


def sample_views(
    image: Tensor,
    source_from_view: Tensor,
    view_px: int,
    displacement_ndc: Tensor | None = None,
    *,
    padding: str = "reflection",
) -> Tensor:
    """Cut views out of crops.

    Args:
        image: [B, 3, S, S], any range.
        source_from_view: [B, G, 2, 3] view ndc -> crop ndc.
        view_px: side of the views.
        displacement_ndc: [B, G, 2, c, c] warps of the views, None for affine ones.
        padding: how the crop is continued, one of `PADDINGS`.
    Returns: [B, G, 3, view_px, view_px]; bilinear.
    """
    b, num_views = source_from_view.shape[:2]
    places = pixels_in_source(source_from_view, view_px, displacement_ndc).to(image.dtype)
    source = image if num_views == 1 else image.repeat_interleave(num_views, dim=0)
    views = F.grid_sample(source, places.flatten(0, 1), padding_mode=padding, align_corners=False)
    return views.unflatten(0, (b, num_views))


class ViewMaker:
    """uint8 crops to augmented views, their maps and their masks.

    Args:
        view_px, patch_px: side of a view and of a patch; the grid of masks is view_px / patch_px
            squared.
        masks: mask sampler.
        colour: photometric augmentation, one draw per view.
        colour_later: another one for the second view and those after it; None is `colour` again.
        num_views: G.
        scale: lowest and highest side of a view relative to the crop, drawn log-uniformly.
        rotation_deg: views turn by +- this.
        full_rotation_prob: share of views that turn by anything up to 180 degrees.
        shift_ndc: views move by +- this on both axes.
        aspect: relative stretch of one axis, +- this.
        flip_prob: share of views that are mirrored, which makes a right hand look like a left one.
        warp_ndc: spread of the control values of a smooth known warp of each view; 0 is none.
        warp_grid: control values per axis.
        hidden_rotation_deg, hidden_full_rotation_prob, hidden_scale, hidden_shift_ndc: the hidden
            similarity shared by a sample's views.
        partner_prob: share of samples whose later views are cut from the crop's partner.
        padding: what lies outside the crop: its "reflection", "zeros", or its "border" repeated.
        keep_clean: also keep the views as they are before colour augmentation.
        num_local, local_px, local_scale, local_shift_ndc: small crops for the class losses: how
            many, their side, and `scale` and `shift_ndc` of their own. They are never warped.
    Raises: ValueError for settings that do not fit.
    """

    def __init__(
        self,
        *,
        view_px: int,
        patch_px: int,
        masks: MaskSampler,
        colour: ColourJitter,
        colour_later: ColourJitter | None = None,
        num_views: int = 2,
        scale: Sequence[float] = (0.55, 0.95),
        rotation_deg: float = 45.0,
        full_rotation_prob: float = 0.1,
        shift_ndc: float = 0.12,
        aspect: float = 0.0,
        flip_prob: float = 0.0,
        warp_ndc: float = 0.0,
        warp_grid: int = 4,
        hidden_rotation_deg: float = 30.0,
        hidden_full_rotation_prob: float = 0.0,
        hidden_scale: float = 0.1,
        hidden_shift_ndc: float = 0.1,
        partner_prob: float = 0.0,
        padding: str = "reflection",
        keep_clean: bool = False,
        num_local: int = 0,
        local_px: int = 96,
        local_scale: Sequence[float] = (0.2, 0.55),
        local_shift_ndc: float = 0.4,
    ) -> None:
        shares = {
            "full_rotation_prob": full_rotation_prob,
            "flip_prob": flip_prob,
            "hidden_full_rotation_prob": hidden_full_rotation_prob,
            "partner_prob": partner_prob,
        }
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} is a share, got {share} (views.{name})")
        for name, below_1 in (("aspect", aspect), ("hidden_scale", hidden_scale)):
            if not 0.0 <= below_1 < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {below_1} (views.{name})")
        for name, (low, high) in (("scale", scale), ("local_scale", local_scale)):
            if not 0.0 < low <= high:
                raise ValueError(f"need 0 < low <= high, got {name}=[{low}, {high}] (views.{name})")
        for name, side in (("view_px", view_px), ("local_px", local_px)):
            if (name == "view_px" or num_local) and (side < patch_px or side % patch_px):
                raise ValueError(
                    f"{name}={side} is no multiple of the patch, {patch_px} px (views.{name})"
                )
        if num_views < 2:
            raise ValueError(f"alignment needs num_views >= 2, got {num_views} (views.num_views)")
        if num_local < 0:
            raise ValueError(f"num_local must be >= 0, got {num_local} (views.num_local)")
        if warp_ndc < 0:
            raise ValueError(f"warp_ndc must be >= 0, got {warp_ndc} (views.warp_ndc)")
        if warp_grid < 2:
            raise ValueError(f"warp_grid must be >= 2, got {warp_grid} (views.warp_grid)")
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {PADDINGS}, got {padding!r} (views.padding)")
        self.view_px, self.grid_hw = view_px, (view_px // patch_px, view_px // patch_px)
        self.masks, self.colour, self.colour_later = masks, colour, colour_later
        self.num_views, self.num_local, self.local_px = num_views, num_local, local_px
        turns: dict[str, Any] = {
            "rotation_deg": rotation_deg,
            "full_rotation_prob": full_rotation_prob,
            "aspect": aspect,
            "flip_prob": flip_prob,
        }
        self.geometry = {**turns, "scale": tuple(scale), "shift_ndc": shift_ndc}
        self.local_geometry = {**turns, "scale": tuple(local_scale), "shift_ndc": local_shift_ndc}
        self.hidden = {
            "rotation_deg": hidden_rotation_deg,
            "full_rotation_prob": hidden_full_rotation_prob,
            "scale": hidden_scale,
            "shift_ndc": hidden_shift_ndc,
        }
        self.warp_ndc, self.warp_grid = warp_ndc, warp_grid
        self.partner_prob, self.padding, self.keep_clean = partner_prob, padding, keep_clean

    def __call__(
        self, batch: CropBatch, generator: torch.Generator, info: StepInfo
    ) -> PretrainBatch:
        """Make views on the batch's device; all randomness comes from the CPU generator.

        Raises: ValueError when partners are wanted and the data has none.
        """
        b, device = len(batch.image), batch.image.device
        shape = b, self.num_views
        source_from_view = draw_views(shape, generator, **self.geometry)
        crop_from_source = draw_hidden(b, generator, **self.hidden)
        is_masked = self.masks(shape, self.grid_hw, generator, info)
        warps: Tensor | None = None
        if self.warp_ndc > 0:
            warps = draw_warps(shape, generator, std_ndc=self.warp_ndc, grid=self.warp_grid)
            warps = warps.to(device)
        maps = compose(crop_from_source[:, None], source_from_view).to(device)
        image = batch.image.float().div_(255.0)
        clean = self._cut(image, batch.partner, maps, warps, generator)
        local_views: Tensor | None = None
        if self.num_local:
            local = draw_views((b, self.num_local), generator, **self.local_geometry)
            maps = compose(crop_from_source[:, None], local).to(device)
            local_views = sample_views(image, maps, self.local_px, padding=self.padding)
            local_views = _coloured(local_views, self.colour, generator)
        return PretrainBatch(
            views=self._colour(clean, generator),
            source_from_view=source_from_view.to(device),
            is_masked=is_masked.to(device),
            displacement_ndc=warps,
            clean_views=clean if self.keep_clean else None,
            local_views=local_views,
            group=batch.group,
            hidden=is_masked.flatten().nonzero().squeeze(1).to(device),
            num_hidden=tuple(is_masked.flatten(1).sum(dim=1).tolist()),
        )

    def _cut(
        self,
        image: Tensor,
        partner: Tensor | None,
        maps: Tensor,
        warps: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """[B, G, 3, H, W] without colour augmentation; the later ones of some from partners."""
        if self.partner_prob == 0:
            return sample_views(image, maps, self.view_px, warps, padding=self.padding)
        if partner is None:
            raise ValueError(
                "views of partners are wanted but the data has none: views.partner_prob=0, or "
                "data=freihand data.partners=true"
            )
        chosen = torch.rand(len(image), generator=generator) < self.partner_prob
        other = torch.where(
            chosen.to(image.device)[:, None, None, None], partner.float().div_(255.0), image
        )
        parts = [
            sample_views(
                source,
                maps[:, part],
                self.view_px,
                None if warps is None else warps[:, part],
                padding=self.padding,
            )
            for source, part in ((image, slice(0, 1)), (other, slice(1, None)))
        ]
        return torch.cat(parts, dim=1)

    def _colour(self, views: Tensor, generator: torch.Generator) -> Tensor:
        if self.colour_later is None:
            return _coloured(views, self.colour, generator)
        first = _coloured(views[:, :1], self.colour, generator)
        return torch.cat([first, _coloured(views[:, 1:], self.colour_later, generator)], dim=1)


def _coloured(views: Tensor, colour: ColourJitter, generator: torch.Generator) -> Tensor:
    return colour(views.flatten(0, 1), generator).unflatten(0, views.shape[:2])
