"""Views by plan in torch, on any device: the plain way, all views of a batch at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.contracts import CropBatch, PretrainBatch
from handmim.data.colour import coloured
from handmim.data.view_plans import ViewFrame, ViewPlan
from handmim.geometry.warp import pixels_in_source


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


def torch_views(crops: CropBatch, plan: ViewPlan, frame: ViewFrame) -> PretrainBatch:
    """Views of crops by a plan on the same device, float in [0, 1]; nothing waits for the
    device."""
    image = crops.image.float().div_(255.0)
    clean = _cut(image, crops.partner, plan, frame)
    local_views: Tensor | None = None
    if plan.crop_from_local is not None:
        local_views = sample_views(
            image, plan.crop_from_local, frame.local_px, padding=frame.padding
        )
        shape = local_views.shape[:2]
        local_views = coloured(local_views.flatten(0, 1), plan.local_colours).unflatten(0, shape)
    return PretrainBatch(
        views=_coloured_views(clean, plan),
        source_from_view=plan.source_from_view,
        is_masked=plan.is_masked,
        displacement_ndc=plan.displacement_ndc,
        clean_views=clean if frame.keep_clean else None,
        local_views=local_views,
        group=crops.group,
        hidden=plan.hidden,
        num_hidden=tuple(plan.num_hidden),  # pinning makes it a list
    )


def _cut(image: Tensor, partner: Tensor | None, plan: ViewPlan, frame: ViewFrame) -> Tensor:
    """[B, G, 3, H, W] without colour augmentation; the later ones of some from partners."""
    maps, warps = plan.crop_from_view, plan.displacement_ndc
    if plan.from_partner is None or partner is None:
        return sample_views(image, maps, frame.view_px, warps, padding=frame.padding)
    other = torch.where(plan.from_partner[:, None, None, None], partner.float().div_(255.0), image)
    parts = [
        sample_views(
            source,
            maps[:, part],
            frame.view_px,
            None if warps is None else warps[:, part],
            padding=frame.padding,
        )
        for source, part in ((image, slice(0, 1)), (other, slice(1, None)))
    ]
    return torch.cat(parts, dim=1)


def _coloured_views(views: Tensor, plan: ViewPlan) -> Tensor:
    if len(plan.colours) == 1:
        return coloured(views.flatten(0, 1), plan.colours[0]).unflatten(0, views.shape[:2])
    parts = (views[:, :1], views[:, 1:])
    made = [
        coloured(part.flatten(0, 1), colours).unflatten(0, part.shape[:2])
        for part, colours in zip(parts, plan.colours, strict=True)
    ]
    return torch.cat(made, dim=1)
