"""Pictures of frozen features: nearest neighbours, patch tokens as colours, numbered
pseudo-keypoints."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.geometry.camera import px_from_ndc
from handmim.render.overlay import (
    contact_sheet,
    distinct_colours,
    draw_points,
    enlarge,
    to_picture,
)
from handmim.types import Tokens

Picture = NDArray[np.uint8]
SIDE_PX = 144  # pictures are enlarged to about this


def zoomed(image: Tensor) -> Picture:
    """[3, H, W] in [0, 1] as a picture of about `SIDE_PX`."""
    picture = to_picture(image.float().cpu().numpy())
    return enlarge(picture, max(1, SIDE_PX // picture.shape[0]))


def draw_neighbours(query: Tensor, base: Tensor, order: Tensor) -> Picture:
    """One row per query: the picture, then its nearest ones.

    Args:
        query: [m, 3, H, W] in [0, 1].
        base: [n, 3, H, W] searched pictures.
        order: [m, k] places in `base`, nearest first.
    """
    tiles = []
    for image, places in zip(query, order.tolist(), strict=True):
        tiles += [zoomed(image), *(zoomed(base[i]) for i in places)]
    k = order.shape[1]
    headings = ["query", *(f"neighbour {i + 1}" for i in range(k))]
    return contact_sheet(tiles, 1 + k, headings)


def patch_colours(patches: Tensor) -> Tensor:
    """First three principal components of patch tokens as colours.

    A component's sign is arbitrary; the heavier tail is made the bright one, so that pictures of
    later steps can be compared.

    Args:
        patches: [B, N, D]; components are those of all tokens shown.
    Returns: [B, N, 3] in [0, 1], each component from its 2 to its 98 per cent quantile.
    """
    x = patches.double().flatten(0, 1)
    x = x - x.mean(dim=0)
    parts = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)
    parts = parts * torch.where(parts.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    # Where tokens do not differ there is nothing to see: one colour, not amplified rounding.
    tiny = 1e-6 * patches.double().abs().mean().clamp(min=1e-12)
    colours = ((parts - low) / (high - low).clamp(min=tiny)).clamp(0, 1)
    return colours.view(*patches.shape[:2], 3)


def draw_patch_colours(images: Tensor, tokens: Tokens) -> Picture:
    """Pictures beside their patch tokens as colours, three pairs in a row.

    Args:
        images: [B, 3, H, W] in [0, 1].
        tokens: of the same pictures, all patches.
    """
    h, w = tokens.grid_hw
    tiles = []
    for image, colours in zip(images, patch_colours(tokens.patches.float().cpu()), strict=True):
        picture = zoomed(image)
        grid = (colours.view(h, w, 3).numpy() * 255).round().astype(np.uint8)
        size = picture.shape[1], picture.shape[0]
        tiles += [picture, cv2.resize(grid, size, interpolation=cv2.INTER_NEAREST)]
    return contact_sheet(tiles, 6, ["picture", "patch tokens"] * 3)


def draw_numbered_points(image: Tensor, points_ndc: Tensor) -> Picture:
    """A picture with its pseudo-keypoints, each in its colour and with its number.

    Args:
        image: [3, H, W] in [0, 1].
        points_ndc: [K, 2 or 3].
    """
    picture = to_picture(image.float().cpu().numpy())
    zoom = max(1, SIDE_PX // picture.shape[0])
    side = picture.shape[0]
    where_px = px_from_ndc(points_ndc[:, :2].float().cpu(), side).numpy()
    canvas = draw_points(picture, where_px, distinct_colours(len(points_ndc)), zoom=zoom)
    for number, (x, y) in enumerate(where_px * zoom):
        for tint, thick in (((20, 20, 20), 2), ((255, 255, 255), 1)):
            origin = round(float(x)) + 4, round(float(y)) - 3
            cv2.putText(
                canvas,
                str(number),
                origin,
                cv2.FONT_HERSHEY_SIMPLEX,
                0.32,
                tint,
                thick,
                cv2.LINE_AA,
            )
    return canvas


def draw_pictures_with_points(images: Tensor, points_ndc: Tensor) -> Picture:
    """`draw_numbered_points` of several pictures [B, 3, H, W] and their points [B, K, d]."""
    pairs = zip(images, points_ndc, strict=True)
    return contact_sheet([draw_numbered_points(*pair) for pair in pairs], min(6, len(images)))
