"""Images of features and of pretraining batches: nearest neighbours, patch tokens as colours,
numbered pseudo-keypoints, views with their masks and reconstructions."""

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.geometry.camera import px_from_ndc
from handmim.objectives.pixel_recon import PixelTargets, patchify, unpatchify
from handmim.objectives.point_sets import points_of_next_view
from handmim.render.overlay import (
    contact_sheet,
    distinct_colours,
    draw_points,
    enlarge,
    to_image,
)
from handmim.types import PretrainBatch, Tokens

Image = NDArray[np.uint8]
SIDE_PX = 144  # images are enlarged to about this


def _as_image(image: Tensor) -> Image:
    return to_image(image.float().cpu().numpy())


def _enlarged(image: Tensor) -> Image:
    """[3, H, W] in [0, 1] as an image of about `SIDE_PX`."""
    small = _as_image(image)
    return enlarge(small, max(1, SIDE_PX // small.shape[0]))


def _resized_like(small: Image, image: Image, interpolation: int = cv2.INTER_NEAREST) -> Image:
    size = image.shape[1], image.shape[0]
    return cv2.resize(small, size, interpolation=interpolation).astype(np.uint8, copy=False)


def draw_neighbours(query: Tensor, base: Tensor, order: Tensor) -> Image:
    """One row per query: the image, then its nearest ones.

    Args:
        query: [m, 3, H, W] in [0, 1].
        base: [n, 3, H, W] searched images.
        order: [m, k] indices into `base`, nearest first.
    """
    tiles = []
    for image, indices in zip(query, order.tolist(), strict=True):
        tiles += [_enlarged(image), *(_enlarged(base[i]) for i in indices)]
    k = order.shape[1]
    return contact_sheet(tiles, 1 + k, ["query", *(f"neighbour {i + 1}" for i in range(k))])


def patch_colours(patches: Tensor) -> Tensor:
    """First three principal components of patch tokens as colours.

    A component's sign is arbitrary; the heavier tail is made bright, so that images of later steps
    can be compared.

    Args:
        patches: [B, N, D]; components are those of all tokens shown.
    Returns: [B, N, 3] in [0, 1], each component from its 2 to its 98 per cent quantile.
    """
    x = patches.double().flatten(0, 1)
    x = x - x.mean(dim=0)
    parts = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)
    parts = parts * torch.where(parts.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    # Equal tokens give one colour; their rounding is not amplified.
    tiny = 1e-6 * patches.double().abs().mean().clamp(min=1e-12)
    colours = ((parts - low) / (high - low).clamp(min=tiny)).clamp(0, 1)
    return colours.view(*patches.shape[:2], 3)


def draw_patch_colours(images: Tensor, tokens: Tokens) -> Image:
    """Images beside their patch tokens as colours, three pairs in a row.

    Args:
        images: [B, 3, H, W] in [0, 1].
        tokens: all patch tokens of the same images.
    """
    h, w = tokens.grid_hw
    tiles = []
    for image, colours in zip(images, patch_colours(tokens.patches.float().cpu()), strict=True):
        shown = _enlarged(image)
        grid = (colours.view(h, w, 3).numpy() * 255).round().astype(np.uint8)
        tiles += [shown, _resized_like(grid, shown)]
    return contact_sheet(tiles, 6, ["image", "patch tokens"] * 3)


def draw_numbered_points(image: Tensor, points_ndc: Tensor) -> Image:
    """An image with pseudo-keypoints, each in its colour and with its number.

    Args:
        image: [3, H, W] in [0, 1].
        points_ndc: [K, 2 or 3].
    """
    small = _as_image(image)
    side = small.shape[0]
    zoom = max(1, SIDE_PX // side)
    points_px = px_from_ndc(points_ndc[:, :2].float().cpu(), side).numpy()
    canvas = draw_points(small, points_px, distinct_colours(len(points_ndc)), zoom=zoom)
    font = cv2.FONT_HERSHEY_SIMPLEX
    for number, (x, y) in enumerate(points_px * zoom):
        origin = round(float(x)) + 4, round(float(y)) - 3
        for colour, thickness in (((20, 20, 20), 2), ((255, 255, 255), 1)):
            cv2.putText(canvas, str(number), origin, font, 0.32, colour, thickness, cv2.LINE_AA)
    return canvas


def draw_images_with_points(images: Tensor, points_ndc: Tensor) -> Image:
    """`draw_numbered_points` of several images [B, 3, H, W] and their points [B, K, d]."""
    pairs = zip(images, points_ndc, strict=True)
    return contact_sheet([draw_numbered_points(*pair) for pair in pairs], min(6, len(images)))


def _masked_grey(views: Tensor, is_masked: Tensor, patch_px: int) -> Tensor:
    """[M, 3, H, W] with masked patches grey; is_masked [M, N]."""
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
    """Views whose masked patches are those that the pixel head predicts.

    Args:
        views: [M, 3, H, W] in [0, 1].
        is_masked: [M, N], exactly the patches that were predicted.
        pixels: predictions and targets in row-major order of `is_masked`.
        patch_px: p.
        min_var: floor of the variance by which targets were normalised; mean and contrast of a
            patch are then those of its target. None for raw pixels.
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
    patch_px: int,
    *,
    pixels: PixelTargets | None = None,
    min_var: float | None = None,
    points: Tensor | None = None,
    low_res: Mapping[str, Tensor] | None = None,
    num: int = 6,
) -> dict[str, Image]:
    """Sheets `views` and, where the parts exist, `local_views`, `keypoints` and those of `low_res`;
    one row per sample or two samples in a row.

    Args:
        batch: views [B, G, 3, H, W]; the first two views are shown.
        patch_px: patch side.
        pixels: reconstructed patches of the same batch.
        min_var: see `reconstructions`.
        points: [B, G, K, d] pseudo-keypoints in each view's ndc.
        low_res: low-resolution reconstructions [B, G, t, t] by name of the sheet.
        num: samples shown.
    """
    num = min(num, len(batch.views))
    flat, flat_mask = batch.views.flatten(0, 1), batch.is_masked.flatten(0, 1)
    columns = [batch.views, _masked_grey(flat, flat_mask, patch_px).view_as(batch.views)]
    names = ["view", "input of the student"]
    # Where visible patches are predicted too, which ones is not recorded.
    if pixels is not None and 0 < len(pixels.pred) == int(flat_mask.sum()):
        filled = reconstructions(flat, flat_mask, pixels, patch_px, min_var=min_var)
        columns.append(filled.view_as(batch.views))
        names.append("reconstruction")
    tiles = [_enlarged(column[i, v]) for i in range(num) for v in (0, 1) for column in columns]
    sheets = {"views": contact_sheet(tiles, 2 * len(columns), names * 2)}
    if batch.local_views is not None:
        sheets["local_views"] = _draw_local(batch.views, batch.local_views, num)
    if points is not None:
        sheets["keypoints"] = _draw_keypoints(batch, points.float(), num)
    for name, grey in (low_res or {}).items():
        sheets[name] = _draw_low_resolution(batch.views, grey.float(), num)
    return sheets


def _draw_local(views: Tensor, local_views: Tensor, num: int) -> Image:
    """View a and the sample's local crops, enlarged to its size."""
    tiles = []
    for i in range(num):
        first = _enlarged(views[i, 0])
        crops = [_resized_like(_as_image(c), first, cv2.INTER_CUBIC) for c in local_views[i]]
        tiles += [first, *crops]
    num_local = local_views.shape[1]
    return contact_sheet(tiles, 1 + num_local, ["view a", *["local crop"] * num_local])


def _draw_keypoints(batch: PretrainBatch, points: Tensor, num: int) -> Image:
    """View a with its points, view b with its own, and view b with those of a by the known map."""
    carried = points_of_next_view(points, batch)
    last = points.shape[1] - 1  # rolling brings a's points to the last view
    tiles = [
        draw_numbered_points(batch.views[i, view], points_ndc)
        for i in range(num)
        for view, points_ndc in (
            (0, points[i, 0]),
            (last, points[i, last]),
            (last, carried[i, last]),
        )
    ]
    return contact_sheet(tiles, 6, ["a: own points", "b: own points", "b: points of a"] * 2)


def _draw_low_resolution(views: Tensor, reconstructed: Tensor, num: int) -> Image:
    """Views and the low-resolution grey images reconstructed from class token or points."""
    tiles = []
    for i in range(num):
        view, grey = _enlarged(views[i, 0]), reconstructed[i, 0].cpu().numpy()
        span = max(float(np.ptp(grey)), 1e-6)
        small = np.repeat(((grey - grey.min()) / span * 255).astype(np.uint8)[..., None], 3, axis=2)
        tiles += [view, _resized_like(small, view)]
    return contact_sheet(tiles, 6, ["view", "reconstruction"] * 3)
