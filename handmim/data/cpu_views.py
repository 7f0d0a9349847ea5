"""Views by plan in OpenCV, picture by picture on a CPU: the quick way where no device does it.

The same as `view_pixels.torch_views` up to rounding: each step ends in uint8, so grey levels may
differ by a few of 255 where colours are stretched.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.contracts import CropBatch, PretrainBatch
from handmim.data.colour import LUMA, ColourPlan
from handmim.data.view_plans import ViewFrame, ViewPlan
from handmim.geometry.crop import px_from_px
from handmim.geometry.warp import pixels_in_source

Pictures = NDArray[np.uint8]  # [..., H, W, 3] RGB

BORDERS = {
    "reflection": cv2.BORDER_REFLECT,
    "zeros": cv2.BORDER_CONSTANT,
    "border": cv2.BORDER_REPLICATE,
}
_SAME = np.eye(3, dtype=np.float32)
_SOLARISED = np.minimum(np.arange(256), 255 - np.arange(256)).astype(np.uint8)


def cpu_views(crops: CropBatch, plan: ViewPlan, frame: ViewFrame) -> PretrainBatch:
    """Views of crops by a plan, all on the CPU.

    Returns: the batch with views, clean views and local crops as uint8 of 0 to 255, channels last
        in memory.
    """
    image = _pictures(crops.image)
    b, g = plan.crop_from_view.shape[:2]
    later = image
    if plan.from_partner is not None and crops.partner is not None:
        partner = _pictures(crops.partner)
        later = [partner[i] if own else image[i] for i, own in enumerate(plan.from_partner)]
    sources = [image[i] if v == 0 else later[i] for i in range(b) for v in range(g)]
    views = cut(sources, plan.crop_from_view, frame.view_px, plan.displacement_ndc, frame.padding)
    clean = views.copy() if frame.keep_clean else None
    flat = views.reshape(b * g, *views.shape[2:])
    if len(plan.colours) == 1:
        colour(list(flat), plan.colours[0])
    else:
        first, others = plan.colours
        colour(list(flat[::g]), first)
        colour([view for i, view in enumerate(flat) if i % g], others)
    local: Pictures | None = None
    if plan.crop_from_local is not None:
        num = plan.crop_from_local.shape[1]
        sources = [image[i] for i in range(b) for _ in range(num)]
        local = cut(sources, plan.crop_from_local, frame.local_px, None, frame.padding)
        colour(list(local.reshape(b * num, *local.shape[2:])), plan.local_colours)
    return PretrainBatch(
        views=_channels_first(views),
        source_from_view=plan.source_from_view,
        is_masked=plan.is_masked,
        displacement_ndc=plan.displacement_ndc,
        clean_views=None if clean is None else _channels_first(clean),
        local_views=None if local is None else _channels_first(local),
        group=crops.group,
        hidden=plan.hidden,
        num_hidden=plan.num_hidden,
    )


def as_float(batch: PretrainBatch) -> PretrainBatch:
    """The same batch with its uint8 pictures in [0, 1]."""
    clean, local = batch.clean_views, batch.local_views
    counts = batch.num_hidden
    return batch._replace(
        num_hidden=None if counts is None else tuple(counts),  # pinning makes it a list
        views=batch.views.float().div_(255.0),
        clean_views=None if clean is None else clean.float().div_(255.0),
        local_views=None if local is None else local.float().div_(255.0),
    )


def cut(
    sources: list[Pictures],
    crop_from_view: Tensor,
    side_px: int,
    displacement_ndc: Tensor | None,
    padding: str,
) -> Pictures:
    """Resample pictures, once each: turn, scale, shift, mirror, warp.

    Args:
        sources: B V square pictures of one size, with a fourth channel: OpenCV warps four at once
            more than twice as quickly as three.
        crop_from_view: [B, V, 2, 3] ndc.
        side_px: side of the views.
        displacement_ndc: [B, V, 2, c, c] or None.
        padding: what lies outside of a picture, one of `PADDINGS`.
    Returns: [B, V, side_px, side_px, 3].
    """
    b, num = crop_from_view.shape[:2]
    out = np.empty((b, num, side_px, side_px, 3), np.uint8)
    flat = out.reshape(b * num, side_px, side_px, 3)
    four = np.empty((side_px, side_px, 4), np.uint8)
    side, border = sources[0].shape[0], BORDERS[padding]
    if displacement_ndc is not None:
        places = pixels_in_source(crop_from_view, side_px, displacement_ndc).flatten(0, 1)
        xy = ((places + 1) * (side / 2) - 0.5).numpy()
        for source, view, at in zip(sources, flat, xy, strict=True):
            x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
            cv2.remap(source, x, y, cv2.INTER_LINEAR, dst=four, borderMode=border)
            cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=view)
        return out
    maps = px_from_px(crop_from_view.double(), side, side_px)
    maps[..., 2] += (maps[..., :2].sum(dim=-1) - 1) / 2  # OpenCV counts from a pixel's centre
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = side_px, side_px
    for source, view, m in zip(sources, flat, maps.flatten(0, 1).numpy(), strict=True):
        cv2.warpAffine(source, m, size, dst=four, flags=how, borderMode=border)
        cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=view)
    return out


def colour(views: list[Pictures], plan: ColourPlan | None) -> None:
    """Change the colours of pictures by a plan, in place."""
    if plan is None:
        return
    if plan.rows is not None:
        views = [views[i] for i in plan.rows.tolist()]
    linear, lift = plan.linear.numpy(), plan.lift.tolist()
    for view, m, raised in zip(views, linear, lift, strict=True):
        if raised == 0 and np.abs(m - _SAME).max() < 1e-6:
            continue
        constant = np.full((3, 1), raised * np.dot(LUMA, cv2.mean(view)[:3]), np.float32)
        cv2.transform(view, np.hstack([m, constant]), dst=view)
    if plan.blur_rows is not None and plan.blur_sigma_px is not None:
        for row, sigma in zip(plan.blur_rows.tolist(), plan.blur_sigma_px.tolist(), strict=True):
            radius = min(plan.blur_radius, int(np.ceil(4 * sigma)))  # weights beyond are nothing
            kernel = cv2.getGaussianKernel(2 * radius + 1, sigma)
            view = views[row]
            cv2.sepFilter2D(view, -1, kernel, kernel, dst=view, borderType=cv2.BORDER_REFLECT_101)
    if plan.is_solarised is not None:
        for row in plan.is_solarised.nonzero().squeeze(1).tolist():
            cv2.LUT(views[row], _SOLARISED, dst=views[row])
    if plan.noise_rows is not None and plan.noise is not None:
        for row, noise in zip(plan.noise_rows.tolist(), plan.noise, strict=True):
            noisy = views[row] + 255 * noise.permute(1, 2, 0).numpy()
            views[row][:] = noisy.round().clip(0, 255)


def _pictures(image: Tensor) -> list[Pictures]:
    """[B, 3, S, S] as pictures with a fourth channel."""
    stack = np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy())
    return [cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA) for picture in stack]


def _channels_first(pictures: Pictures) -> Tensor:
    return torch.from_numpy(pictures).movedim(-1, -3)
