"""Pictures of a pretraining batch: views and masks, reconstructions, pseudo-keypoints carried from
view to view."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.geometry.warp import from_source, to_source
from handmim.models.heads.pixel import patchify, unpatchify
from handmim.render.overlay import contact_sheet, to_picture
from handmim.tasks.feature_pictures import draw_numbered_points, zoomed
from handmim.types import PixelTargets, PretrainBatch, PretrainOutputs

Picture = NDArray[np.uint8]


def grey_out(views: Tensor, is_masked: Tensor, patch_px: int) -> Tensor:
    """[M, 3, H, W] with hidden patches grey; is_masked [M, N]."""
    grid = views.shape[-2] // patch_px, views.shape[-1] // patch_px
    patches = patchify(views, patch_px)
    return unpatchify(torch.where(is_masked.unsqueeze(-1), 0.5, patches), patch_px, grid)


def reconstructions(
    views: Tensor,
    is_masked: Tensor,
    pixels: PixelTargets,
    patch_px: int,
    *,
    min_var: float | None = None,
) -> Tensor:
    """Hidden patches filled with what the pixel head predicts.

    Args:
        views: [M, 3, H, W] in [0, 1].
        is_masked: [M, N], exactly the patches that were predicted.
        pixels: predictions and truth in row-major order of `is_masked`.
        patch_px: p.
        min_var: floor of the variance by which targets were normalised; predictions lack mean and
            contrast of the patch then, which are taken from the truth. None when they are raw
            pixels.
    Returns: [M, 3, H, W].
    """
    grid = views.shape[-2] // patch_px, views.shape[-1] // patch_px
    patches = patchify(views, patch_px)
    pred = pixels.pred.to(patches.dtype)
    if min_var is not None:
        var, mean = torch.var_mean(pixels.target, dim=-1, keepdim=True, correction=0)
        pred = pred * var.clamp(min=min_var).sqrt() + mean
    patches[is_masked] = pred
    return unpatchify(patches.clamp(0, 1), patch_px, grid)


def draw_pretraining(
    batch: PretrainBatch,
    out: PretrainOutputs,
    patch_px: int,
    *,
    min_var: float | None = None,
    num: int = 6,
) -> dict[str, Picture]:
    """Sheets `views` and, where the parts exist, `local_views`, `keypoints`, `thumbnails` and
    `point_thumbnails`; one row per sample or two samples in a row.

    Args:
        batch: views [B, G, 3, H, W]; the first two views are shown.
        out: outputs of the same batch.
        patch_px: patch side.
        min_var: see `reconstructions`.
        num: samples shown.
    """
    num = min(num, len(batch.views))
    flat, flat_mask = batch.views.flatten(0, 1), batch.is_masked.flatten(0, 1)
    columns = [batch.views, grey_out(flat, flat_mask, patch_px).view_as(batch.views)]
    names = ["view", "seen by the student"]
    pixels = out.pixels
    # Where visible patches are predicted too nobody remembers which.
    if pixels is not None and 0 < len(pixels.pred) == int(flat_mask.sum()):
        filled = reconstructions(flat, flat_mask, pixels, patch_px, min_var=min_var)
        columns.append(filled.view_as(batch.views))
        names.append("reconstruction")
    tiles = [zoomed(column[i, v]) for i in range(num) for v in (0, 1) for column in columns]
    sheets = {"views": contact_sheet(tiles, 2 * len(columns), names * 2)}
    if batch.local_views is not None:
        sheets["local_views"] = _draw_local(batch.views, batch.local_views, num)
    if out.keypoints_ndc is not None:
        sheets["keypoints"] = _draw_keypoints(batch, out.keypoints_ndc.float(), num)
    for name in ("thumbnail", "point_thumbnail"):
        redrawn = getattr(out, name)
        if redrawn is not None:
            sheets[f"{name}s"] = _draw_thumbnails(batch.views, redrawn.float(), num)
    return sheets


def _draw_local(views: Tensor, local_views: Tensor, num: int) -> Picture:
    """View a and the sample's local crops, enlarged to its size."""
    tiles = []
    for i in range(num):
        first = zoomed(views[i, 0])
        size = first.shape[1], first.shape[0]
        small = [to_picture(crop.float().cpu().numpy()) for crop in local_views[i]]
        tiles += [first, *(cv2.resize(s, size, interpolation=cv2.INTER_CUBIC) for s in small)]
    num_local = local_views.shape[1]
    return contact_sheet(tiles, 1 + num_local, ["view a", *["local crop"] * num_local])


def _draw_keypoints(batch: PretrainBatch, points: Tensor, num: int) -> Picture:
    """View a with its points, view b with its own, and view b with those of a carried over by the
    known map."""
    in_source = to_source(points, batch.source_from_view, batch.displacement_ndc)
    carried = from_source(
        in_source.roll(-1, dims=1), batch.source_from_view, batch.displacement_ndc
    )
    last = points.shape[1] - 1  # rolling brings a's points to the last view
    tiles = [
        draw_numbered_points(batch.views[i, view], where)
        for i in range(num)
        for view, where in ((0, points[i, 0]), (last, points[i, last]), (last, carried[i, last]))
    ]
    return contact_sheet(tiles, 6, ["a: own points", "b: own points", "b: points of a"] * 2)


def _draw_thumbnails(views: Tensor, thumbnail: Tensor, num: int) -> Picture:
    """View and the grey picture that is redrawn from its class token or points."""
    tiles = []
    for i in range(num):
        picture = zoomed(views[i, 0])
        grey = thumbnail[i, 0].cpu().numpy()
        span = max(float(np.ptp(grey)), 1e-6)
        small = np.repeat(((grey - grey.min()) / span * 255).astype(np.uint8)[..., None], 3, axis=2)
        size = picture.shape[1], picture.shape[0]
        tiles += [picture, cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)]
    return contact_sheet(tiles, 6, ["view", "redrawn"] * 3)
