"""Views of an unlabeled crop with exact geometry, made for a whole batch at once on the device.

Every view is one affine resampling of the stored crop. A hidden similarity turns the crop first and
is the same for all views of a sample: it is never told to the network, so that borders and framing
give no cue for the map it has to find. Pixels and points share the same matrices.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.contracts import CropBatch, PretrainBatch, StepInfo
from handmim.data.colour import ColourJitter
from handmim.data.masking import MaskSampler
from handmim.geometry.crop import compose, similarity


def sample_views(image: Tensor, source_from_view: Tensor, view_px: int) -> Tensor:
    """Cut affine views out of crops.

    Args:
        image: [B, 3, S, S] in [0, 1].
        source_from_view: [B, G, 2, 3] view ndc -> crop ndc.
        view_px: side of the views.
    Returns: [B, G, 3, view_px, view_px]; bilinear, the crop is continued by reflection.
    """
    b, num_views = source_from_view.shape[:2]
    grid = F.affine_grid(
        source_from_view.flatten(0, 1).to(image.dtype),
        [b * num_views, 3, view_px, view_px],
        align_corners=False,
    )
    source = image if num_views == 1 else image.repeat_interleave(num_views, dim=0)
    views = F.grid_sample(source, grid, padding_mode="reflection", align_corners=False)
    return views.unflatten(0, (b, num_views))


class ViewMaker:
    """uint8 crops to augmented views, their maps and their masks.

    Args:
        view_px, patch_px: side of a view and of a patch; the grid of masks is view_px / patch_px
            squared.
        num_views: G.
        scale: lowest and highest side of a view relative to the crop, drawn log-uniformly.
        rotation_deg: views turn by +- this.
        full_rotation_prob: share of views that turn by anything up to 180 degrees.
        shift_ndc: views move by +- this on both axes.
        aspect: relative stretch of one axis, +- this.
        hidden_rotation_deg, hidden_scale, hidden_shift_ndc: the hidden similarity shared by a
            sample's views.
        colour: photometric augmentation, one draw per view.
        masks: mask sampler.
    """

    def __init__(
        self,
        *,
        view_px: int,
        patch_px: int,
        masks: MaskSampler,
        colour: ColourJitter,
        num_views: int = 2,
        scale: Sequence[float] = (0.55, 0.95),
        rotation_deg: float = 45.0,
        full_rotation_prob: float = 0.1,
        shift_ndc: float = 0.12,
        aspect: float = 0.0,
        hidden_rotation_deg: float = 30.0,
        hidden_scale: float = 0.1,
        hidden_shift_ndc: float = 0.1,
    ) -> None:
        if num_views < 2:
            raise ValueError(f"alignment needs num_views >= 2, got {num_views} (views.num_views)")
        low, high = scale
        if not 0.0 < low <= high:
            raise ValueError(f"need 0 < low <= high, got scale={scale} (views.scale)")
        self.view_px, self.grid_hw = view_px, (view_px // patch_px, view_px // patch_px)
        self.masks, self.colour, self.num_views = masks, colour, num_views
        self.scale, self.rotation_deg = (low, high), rotation_deg
        self.full_rotation_prob, self.shift_ndc, self.aspect = full_rotation_prob, shift_ndc, aspect
        self.hidden_rotation_deg, self.hidden_scale = hidden_rotation_deg, hidden_scale
        self.hidden_shift_ndc = hidden_shift_ndc

    def draw_maps(self, num_crops: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random geometry.

        Returns: source_from_view [B, G, 2, 3], what the losses may know, and crop_from_source [B,
            2, 3], the hidden similarity. Pixels are taken at their product.
        """
        g = self.num_views
        u = torch.rand(num_crops, g, 6, generator=generator) * 2 - 1
        low, high = self.scale
        scale = torch.exp(math.log(low) + (u[..., 0] + 1) / 2 * math.log(high / low))
        full = (u[..., 5] + 1) / 2 < self.full_rotation_prob
        angle = u[..., 1] * torch.where(full, math.pi, math.radians(self.rotation_deg))
        source_from_view = similarity(
            scale, angle, u[..., 2:4] * self.shift_ndc, 1 + self.aspect * u[..., 4]
        )
        h = torch.rand(num_crops, 4, generator=generator) * 2 - 1
        crop_from_source = similarity(
            1 + self.hidden_scale * h[:, 0],
            math.radians(self.hidden_rotation_deg) * h[:, 1],
            self.hidden_shift_ndc * h[:, 2:],
        )
        return source_from_view, crop_from_source

    def __call__(
        self, batch: CropBatch, generator: torch.Generator, info: StepInfo
    ) -> PretrainBatch:
        """Make views on the batch's device; all randomness comes from the CPU generator."""
        b, device = len(batch.image), batch.image.device
        source_from_view, crop_from_source = self.draw_maps(b, generator)
        is_masked = self.masks(b * self.num_views, self.grid_hw, generator)
        maps = compose(crop_from_source[:, None], source_from_view).to(device)
        views = sample_views(batch.image.float() / 255.0, maps, self.view_px)
        views = self.colour(views.flatten(0, 1), generator).unflatten(0, (b, self.num_views))
        return PretrainBatch(
            views=views,
            source_from_view=source_from_view.to(device),
            is_masked=is_masked.unflatten(0, (b, self.num_views)).to(device),
        )
