"""Pixels of planned views: in torch for a whole batch on any device, or in OpenCV image by image,
which is quicker on a CPU. OpenCV's steps end in uint8: values may differ by a few of 255."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from handmim.data.colour import LUMA, ColourPlan, coloured
from handmim.geometry.crop import pixels_in_source, px_from_px
from handmim.types import CropBatch, PretrainBatch

Images = NDArray[np.uint8]  # [..., H, W, 3] RGB

PADDINGS = {
    "reflection": cv2.BORDER_REFLECT,
    "zeros": cv2.BORDER_CONSTANT,
    "border": cv2.BORDER_REPLICATE,
}
_IDENTITY = np.eye(3, dtype=np.float32)
_SOLARISED = np.minimum(np.arange(256), 255 - np.arange(256)).astype(np.uint8)


class ViewFrame(NamedTuple):
    """What all views have in common."""

    view_px: int
    local_px: int
    padding: str  # what lies outside a crop, a key of `PADDINGS`
    keep_clean: bool  # also keep views before colour augmentation


class ViewPlan(NamedTuple):
    """All random choices for the views of B crops; None where there is no such choice."""

    source_from_view: Tensor  # [B, G, 2, 3]
    crop_from_view: Tensor  # [B, G, 2, 3] the same after the shared similarity
    is_masked: Tensor  # [B, G, N] bool
    masked_idx: Tensor  # [M] int64 indices of True in the flattened mask
    num_masked: tuple[int, ...]  # of each sample
    displacement_ndc: Tensor | None  # [B, G, 2, c, c]
    from_partner: Tensor | None  # [B] bool, samples whose later views are cut from the partner
    # of the B G views; or of the B first and the B (G - 1) later ones
    colours: tuple[ColourPlan | None, ...]
    crop_from_local: Tensor | None  # [B, L, 2, 3]
    local_colours: ColourPlan | None  # of the B L local crops


class PlannedCrops(NamedTuple):
    """Crops and the plan of their views."""

    crops: CropBatch
    plan: ViewPlan


def _batch(
    crops: CropBatch, plan: ViewPlan, views: Tensor, clean: Tensor | None, local: Tensor | None
) -> PretrainBatch:
    return PretrainBatch(
        views=views,
        source_from_view=plan.source_from_view,
        is_masked=plan.is_masked,
        displacement_ndc=plan.displacement_ndc,
        clean_views=clean,
        local_views=local,
        group=crops.group,
        known_masked_idx=plan.masked_idx,
        num_masked=tuple(plan.num_masked),  # pinning makes it a list
    )


def sample_views(
    source: Tensor,
    source_from_view: Tensor,
    view_px: int,
    displacement_ndc: Tensor | None = None,
    *,
    padding: str = "reflection",
) -> Tensor:
    """Cut a view out of each image, bilinearly: [P, 3, S, S] by maps [P, 2, 3] and warps [P, 2, c,
    c] -> [P, 3, view_px, view_px]; `padding` is a key of `PADDINGS`."""
    at_ndc = pixels_in_source(source_from_view, view_px, displacement_ndc).to(source.dtype)
    return F.grid_sample(source, at_ndc, padding_mode=padding, align_corners=False)


def torch_views(crops: CropBatch, plan: ViewPlan, frame: ViewFrame) -> PretrainBatch:
    """Views by a plan on the device of both, float in [0, 1]; nothing waits for the device."""
    image = crops.image.float().div_(255.0)
    b, g = plan.crop_from_view.shape[:2]
    source = image.repeat_interleave(g, dim=0)
    if plan.from_partner is not None and crops.partner is not None:
        partner = crops.partner.float().div_(255.0).repeat_interleave(g, dim=0)
        is_other = plan.from_partner[:, None] & (torch.arange(g, device=image.device) > 0)
        source = torch.where(is_other.view(-1, 1, 1, 1), partner, source)
    maps, warps = plan.crop_from_view.flatten(0, 1), plan.displacement_ndc
    warps = None if warps is None else warps.flatten(0, 1)
    clean = sample_views(source, maps, frame.view_px, warps, padding=frame.padding)
    clean = clean.unflatten(0, (b, g))
    parts = clean.split([g] if len(plan.colours) == 1 else [1, g - 1], dim=1)
    done = [
        coloured(part.flatten(0, 1), colours).unflatten(0, part.shape[:2])
        for part, colours in zip(parts, plan.colours, strict=True)
    ]
    views = done[0] if len(done) == 1 else torch.cat(done, dim=1)
    local: Tensor | None = None
    if plan.crop_from_local is not None:
        num, maps = plan.crop_from_local.shape[1], plan.crop_from_local.flatten(0, 1)
        source = image.repeat_interleave(num, dim=0)
        local = sample_views(source, maps, frame.local_px, padding=frame.padding)
        local = coloured(local, plan.local_colours).unflatten(0, (b, num))
    return _batch(crops, plan, views, clean if frame.keep_clean else None, local)


def cpu_views(crops: CropBatch, plan: ViewPlan, frame: ViewFrame) -> PretrainBatch:
    """Views by a plan on the CPU, as uint8 of 0 to 255, channels last in memory."""
    image = _with_alpha(crops.image)
    b, g = plan.crop_from_view.shape[:2]
    sources = [part for part in image for _ in range(g)]
    if plan.from_partner is not None and crops.partner is not None:
        partner = _with_alpha(crops.partner)
        for i in plan.from_partner.nonzero().flatten().tolist():
            sources[i * g + 1 : (i + 1) * g] = [partner[i]] * (g - 1)
    views = cut_views(
        sources, plan.crop_from_view, frame.view_px, plan.displacement_ndc, frame.padding
    )
    clean = _channels_first(views.copy(), b) if frame.keep_clean else None
    flat = list(views)
    parts = [flat]
    if len(plan.colours) == 2:
        parts = [flat[::g], [view for i, view in enumerate(flat) if i % g]]
    for part, colours in zip(parts, plan.colours, strict=True):
        colour_images(part, colours)
    local: Tensor | None = None
    if plan.crop_from_local is not None:
        sources = [part for part in image for _ in range(plan.crop_from_local.shape[1])]
        small = cut_views(sources, plan.crop_from_local, frame.local_px, None, frame.padding)
        colour_images(list(small), plan.local_colours)
        local = _channels_first(small, b)
    return _batch(crops, plan, _channels_first(views, b), clean, local)


def as_float(batch: PretrainBatch) -> PretrainBatch:
    """The same batch with its uint8 images in [0, 1]."""
    names = ("views", "clean_views", "local_views")
    fields = {name: getattr(batch, name) for name in names}
    scaled = {name: x.float().div_(255.0) for name, x in fields.items() if x is not None}
    counts = batch.num_masked
    return batch._replace(num_masked=None if counts is None else tuple(counts), **scaled)


def cut_views(
    sources: Sequence[Images],
    crop_from_view: Tensor,
    side_px: int,
    displacement_ndc: Tensor | None,
    padding: str,
) -> Images:
    """`sample_views` in OpenCV: B V square images of one size -> [B V, side_px, side_px, 3]. They
    have a fourth channel: four are warped more than twice as quickly as three."""
    out = np.empty((len(sources), side_px, side_px, 3), np.uint8)
    four = np.empty((side_px, side_px, 4), np.uint8)
    side, border = sources[0].shape[0], PADDINGS[padding]
    if displacement_ndc is not None:
        at_ndc = pixels_in_source(crop_from_view, side_px, displacement_ndc).flatten(0, 1)
        at_px = ((at_ndc + 1) * (side / 2) - 0.5).numpy()
        for source, view, at in zip(sources, out, at_px, strict=True):
            x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
            cv2.remap(source, x, y, cv2.INTER_LINEAR, dst=four, borderMode=border)
            cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=view)
        return out
    maps = px_from_px(crop_from_view.double(), side, side_px)
    maps[..., 2] += (maps[..., :2].sum(dim=-1) - 1) / 2  # OpenCV counts from a pixel's centre
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = side_px, side_px
    for source, view, m in zip(sources, out, maps.flatten(0, 1).numpy(), strict=True):
        cv2.warpAffine(source, m, size, dst=four, flags=flags, borderMode=border)
        cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=view)
    return out


def colour_images(images: list[Images], plan: ColourPlan | None) -> None:
    """Change the colours of images by a plan, in place."""
    if plan is None:
        return
    if plan.rows is not None:
        images = [images[i] for i in plan.rows.tolist()]
    for image, m, lift in zip(images, plan.linear.numpy(), plan.lift.tolist(), strict=True):
        if lift == 0 and np.abs(m - _IDENTITY).max() < 1e-6:
            continue
        constant = np.full((3, 1), lift * np.dot(LUMA, cv2.mean(image)[:3]), np.float32)
        cv2.transform(image, np.hstack([m, constant]), dst=image)
    for row, sigma in zip(plan.blur_rows.tolist(), plan.blur_sigma_px.tolist(), strict=True):
        radius = min(plan.blur_radius, int(np.ceil(4 * sigma)))  # weights beyond are nothing
        kernel = cv2.getGaussianKernel(2 * radius + 1, sigma)
        image = images[row]
        cv2.sepFilter2D(image, -1, kernel, kernel, dst=image, borderType=cv2.BORDER_REFLECT_101)
    for row in plan.solar_rows.tolist():
        cv2.LUT(images[row], _SOLARISED, dst=images[row])
    for row, noise in zip(plan.noise_rows.tolist(), plan.noise, strict=True):
        noisy = images[row] + 255 * noise.permute(1, 2, 0).numpy()
        images[row][:] = noisy.round().clip(0, 255)


def _with_alpha(image: Tensor) -> list[Images]:
    """[B, 3, S, S] as images with a fourth channel."""
    stack = np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy())
    return [cv2.cvtColor(part, cv2.COLOR_RGB2RGBA) for part in stack]


def _channels_first(images: Images, b: int) -> Tensor:
    """[B V, H, W, 3] -> [B, V, 3, H, W]."""
    return torch.from_numpy(images).unflatten(0, (b, -1)).movedim(-1, -3)
