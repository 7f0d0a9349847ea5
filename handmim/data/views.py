"""Views of an unlabeled crop with exact geometry: drawn for a whole batch, then made of pixels by
torch on the device or by OpenCV on the host.

Every view is one resampling of the stored crop by an affine map and, where asked for, a smooth
warp. A hidden similarity turns the crop first and is the same for all views of a sample: it is
never told to the network, so that borders and framing give no cue for the map it has to find.
Pixels and points share the same maps and fields.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from handmim.contracts import CropBatch, PretrainBatch, StepInfo
from handmim.data.colour import ColourJitter, ColourPlan
from handmim.data.cpu_views import as_float, cpu_views
from handmim.data.masking import MaskSampler
from handmim.data.view_maps import draw_hidden, draw_views, draw_warps
from handmim.data.view_pixels import torch_views
from handmim.data.view_plans import PADDINGS, PlannedCrops, ViewFrame, ViewPlan
from handmim.geometry.crop import compose

PLACES = ("auto", "cpu", "device")


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
        augment_on: who makes pixels: OpenCV on the "cpu", in the processes that load where there
            are some, torch on the training "device", or "auto": the one that is at home there.
            Both do the same up to rounding.
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
        augment_on: str = "auto",
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
        if augment_on not in PLACES:
            raise ValueError(
                f"augment_on must be one of {PLACES}, got {augment_on!r} (views.augment_on)"
            )
        self.augment_on, self.frame = augment_on, ViewFrame(view_px, local_px, padding, keep_clean)
        self.grid_hw = view_px // patch_px, view_px // patch_px
        self.masks, self.colour, self.colour_later = masks, colour, colour_later
        self.num_views, self.num_local = num_views, num_local
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
        self.partner_prob = partner_prob

    def draw(self, crops: CropBatch, generator: torch.Generator, info: StepInfo) -> ViewPlan:
        """All that is random about a batch's views, on the CPU.

        Raises: ValueError when partners are wanted and the data has none.
        """
        b = len(crops.image)
        shape = b, self.num_views
        source_from_view = draw_views(shape, generator, **self.geometry)
        crop_from_source = draw_hidden(b, generator, **self.hidden)[:, None]
        is_masked = self.masks(shape, self.grid_hw, generator, info)
        warps: Tensor | None = None
        if self.warp_ndc > 0:
            warps = draw_warps(shape, generator, std_ndc=self.warp_ndc, grid=self.warp_grid)
        from_partner: Tensor | None = None
        if self.partner_prob > 0:
            if crops.partner is None:
                raise ValueError(
                    "views of partners are wanted but the data has none: views.partner_prob=0, or "
                    "data=freihand data.partners=true"
                )
            from_partner = torch.rand(b, generator=generator) < self.partner_prob
        crop_from_local: Tensor | None = None
        local_colours: ColourPlan | None = None
        if self.num_local:
            local = draw_views((b, self.num_local), generator, **self.local_geometry)
            crop_from_local = compose(crop_from_source, local)
            local_colours = self._colours(b * self.num_local, generator, self.frame.local_px)
        return ViewPlan(
            source_from_view=source_from_view,
            crop_from_view=compose(crop_from_source, source_from_view),
            is_masked=is_masked,
            hidden=is_masked.flatten().nonzero().squeeze(1),
            displacement_ndc=warps,
            num_hidden=tuple(is_masked.flatten(1).sum(dim=1).tolist()),
            from_partner=from_partner,
            colours=self._view_colours(b, generator),
            crop_from_local=crop_from_local,
            local_colours=local_colours,
        )

    def _colours(self, num: int, generator: torch.Generator, px: int) -> ColourPlan | None:
        return self.colour.draw(num, (px, px), generator)

    def _view_colours(self, b: int, generator: torch.Generator) -> tuple[ColourPlan | None, ...]:
        px = self.frame.view_px
        if self.colour_later is None:
            return (self._colours(b * self.num_views, generator, px),)
        first = self._colours(b, generator, px)
        return first, self.colour_later.draw(b * (self.num_views - 1), (px, px), generator)

    def host_part(self, device: torch.device) -> Callable[..., PlannedCrops | PretrainBatch]:
        """What can be done to collated crops before they go to a device, by processes that load:
        views as uint8 where OpenCV makes them, else the plan of views."""
        on_cpu = self.augment_on == "cpu" or (self.augment_on == "auto" and device.type == "cpu")
        return self.on_host if on_cpu else self.planned

    def planned(self, crops: CropBatch, generator: torch.Generator, info: StepInfo) -> PlannedCrops:
        """Crops with the plan of their views."""
        return PlannedCrops(crops, self.draw(crops, generator, info))

    def on_host(
        self, crops: CropBatch, generator: torch.Generator, info: StepInfo
    ) -> PretrainBatch:
        """Views of crops on the CPU, as uint8: `__call__` makes them float."""
        return cpu_views(crops, self.draw(crops, generator, info), self.frame)

    def __call__(
        self,
        batch: CropBatch | PlannedCrops | PretrainBatch,
        generator: torch.Generator,
        info: StepInfo,
    ) -> PretrainBatch:
        """Views as float in [0, 1] on the batch's device.

        Args:
            batch: crops, or what `host_part` made of them.
            generator: on the CPU; the views of crops depend on nothing else.
            info: where training stands.
        Raises: ValueError when partners are wanted and the data has none.
        """
        if isinstance(batch, CropBatch):
            there = batch.image.device
            if there.type == "cpu":
                batch = self.host_part(there)(batch, generator, info)
            else:
                plan = move_data_to_device(self.draw(batch, generator, info), there)
                batch = PlannedCrops(batch, plan)
        if isinstance(batch, PlannedCrops):
            return torch_views(batch.crops, batch.plan, self.frame)
        return as_float(batch)
