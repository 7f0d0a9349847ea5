"""Pictures of a pretraining batch: views and masks, reconstructions, pseudo-keypoints carried from
view to view."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.contracts import PretrainBatch, PretrainOutputs
from handmim.geometry.camera import px_from_ndc
from handmim.geometry.crop import compose, invert, transform_points
from handmim.models.heads.pixel import patchify, unpatchify
from handmim.render.overlay import (
    contact_sheet,
    distinct_colours,
    draw_points,
    enlarge,
    to_picture,
)

Picture = NDArray[np.uint8]
SIDE_PX = 144  # pictures are enlarged to about this


def grey_out(views: Tensor, is_masked: Tensor, patch_px: int) -> Tensor:
    """[M, 3, H, W] with hidden patches grey; is_masked [M, N]."""
    grid = views.shape[-2] // patch_px, views.shape[-1] // patch_px
    patches = patchify(views, patch_px)
    return unpatchify(torch.where(is_masked.unsqueeze(-1), 0.5, patches), patch_px, grid)


def reconstructions(
    views: Tensor,
    is_masked: Tensor,
    pred: Tensor,
    patch_px: int,
    *,
    min_var: float | None = None,
) -> Tensor:
    """Hidden patches filled with what the pixel head predicts.

    Args:
        views: [M, 3, H, W] in [0, 1].
        is_masked: [M, N].
        pred: [hidden patches, p*p*3] in row-major order of `is_masked`.
        patch_px: p.
        min_var: floor of the variance by which targets were normalised; predictions lack mean and
            contrast of the patch then, which are taken from the truth. None when they are raw
            pixels.
    Returns: [M, 3, H, W].
    """
    grid = views.shape[-2] // patch_px, views.shape[-1] // patch_px
    patches = patchify(views, patch_px)
    if min_var is not None:
        var, mean = torch.var_mean(patches[is_masked], dim=-1, keepdim=True, correction=0)
        pred = pred.to(patches.dtype) * var.clamp(min=min_var).sqrt() + mean
    patches[is_masked] = pred.to(patches.dtype)
    return unpatchify(patches.clamp(0, 1), patch_px, grid)


def draw_pretraining(
    batch: PretrainBatch,
    out: PretrainOutputs,
    patch_px: int,
    *,
    min_var: float | None = None,
    num: int = 6,
) -> dict[str, Picture]:
    """Sheets `views` and, where the heads exist, `keypoints` and `thumbnails`; one row per sample.

    Args:
        batch: views [B, G, 3, H, W]; the first two views are shown.
        out: outputs of the same batch.
        patch_px: patch side.
        min_var: see `reconstructions`.
        num: samples shown.
    """
    num = min(num, len(batch.views))
    zoom = max(1, SIDE_PX // batch.views.shape[-1])
    flat, flat_mask = batch.views.flatten(0, 1), batch.is_masked.flatten(0, 1)
    columns = [batch.views, grey_out(flat, flat_mask, patch_px).view_as(batch.views)]
    names = ["view", "seen by the student"]
    if out.pixels is not None and len(out.pixels.pred):
        filled = reconstructions(flat, flat_mask, out.pixels.pred, patch_px, min_var=min_var)
        columns.append(filled.view_as(batch.views))
        names.append("reconstruction")
    tiles = [
        enlarge(to_picture(column[i, v].float().cpu().numpy()), zoom)
        for i in range(num)
        for v in (0, 1)
        for column in columns
    ]
    sheets = {"views": contact_sheet(tiles, 2 * len(columns), names * 2)}
    if out.keypoints_ndc is not None:
        sheets["keypoints"] = _draw_keypoints(batch, out.keypoints_ndc.float(), num, zoom)
    if out.thumbnail is not None:
        sheets["thumbnails"] = _draw_thumbnails(batch, out.thumbnail.float(), num, zoom)
    return sheets


def _draw_keypoints(batch: PretrainBatch, points: Tensor, num: int, zoom: int) -> Picture:
    """View a with its points, view b with its own, and view b with those of a carried over by the
    known map."""
    side = batch.views.shape[-1]
    b_from_a = compose(invert(batch.source_from_view[:, 1]), batch.source_from_view[:, 0])
    carried = transform_points(b_from_a, points[:, 0])
    colours = distinct_colours(points.shape[2])
    tiles = []
    for i in range(num):
        for view, where in ((0, points[i, 0]), (1, points[i, 1]), (1, carried[i])):
            picture = to_picture(batch.views[i, view].float().cpu().numpy())
            where_px = px_from_ndc(where, side).cpu().numpy()
            tiles.append(draw_points(picture, where_px, colours, zoom=zoom))
    return contact_sheet(tiles, 6, ["a: own points", "b: own points", "b: points of a"] * 2)


def _draw_thumbnails(batch: PretrainBatch, thumbnail: Tensor, num: int, zoom: int) -> Picture:
    """View and the grey picture that the class token redraws."""
    tiles = []
    side = batch.views.shape[-1]
    for i in range(num):
        tiles.append(enlarge(to_picture(batch.views[i, 0].float().cpu().numpy()), zoom))
        grey = thumbnail[i, 0].cpu().numpy()
        span = max(float(np.ptp(grey)), 1e-6)
        small = np.repeat(((grey - grey.min()) / span * 255).astype(np.uint8)[..., None], 3, axis=2)
        tiles.append(cv2.resize(small, (side * zoom, side * zoom), interpolation=cv2.INTER_NEAREST))
    return contact_sheet(tiles, 6, ["view", "redrawn"] * 3)
