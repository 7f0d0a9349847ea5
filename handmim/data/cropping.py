"""The one crop rule that training, evaluation and demos share.

A crop is a square about the centre of the hand's box; its side is `scale` times the longer side of
the box. Where it reaches beyond the picture, the picture is continued by reflection. What counts as
the box is said by each dataset: the joints in the picture where they are known, the box that is
given at test time, or the whole picture where that is already a crop (FreiHAND).
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

MIN_SIDE_PX = 4.0


def box_of_points(points_px: Array) -> Array:
    """(x0, y0, x1, y1) of [P, 2] points."""
    return np.concatenate([points_px.min(axis=0), points_px.max(axis=0)])


def crop_map(box_px: Array, scale: float, crop_px: int) -> Array:
    """crop_from_img [2, 3], pixels to pixels, pixel coordinates on [0, W] x [0, H].

    Args:
        box_px: [4] x0, y0, x1, y1 in the picture.
        scale: side of the crop relative to the longer side of the box.
        crop_px: side of the crop in its own pixels.
    Raises: ValueError when the box is not finite or turned around.
    """
    box = np.asarray(box_px, np.float64)
    if not np.isfinite(box).all() or (box[2:] < box[:2]).any():
        raise ValueError(f"a hand's box must be x0 <= x1, y0 <= y1 in pixels, got {box.tolist()}")
    centre = (box[:2] + box[2:]) / 2
    side = max(float((box[2:] - box[:2]).max()) * scale, MIN_SIDE_PX)
    zoom = crop_px / side
    return np.column_stack([np.eye(2) * zoom, crop_px / 2 - zoom * centre])


def cut(image: NDArray[np.uint8], crop_from_img: Array, crop_px: int) -> NDArray[np.uint8]:
    """[crop_px, crop_px, C] crop of a picture [H, W, C] by an upright map of `crop_map`."""
    zoom, offset = float(crop_from_img[0, 0]), np.array(crop_from_img[:, 2], np.float64)
    # Shrinking the whole of a large picture for a small crop costs most: take its part first, where
    # the crop lies inside and nothing is reflected.
    size_px = np.array(image.shape[1::-1])
    margin = math.ceil(2 / min(zoom, 1.0))
    low = np.floor(-offset / zoom).astype(int) - margin
    high = np.ceil((crop_px - offset) / zoom).astype(int) + margin
    if (low >= 0).all() and (high <= size_px).all():
        image = image[low[1] : high[1], low[0] : high[0]]
        offset = offset + zoom * low
    if zoom < 1:  # warping interpolates between four pixels only: shrink by area before
        height, width = image.shape[:2]
        new = max(1, round(width * zoom)), max(1, round(height * zoom))
        image = cv2.resize(image, new, interpolation=cv2.INTER_AREA)
        # Whole pixels: the resized picture may be a fraction of a pixel off the exact zoom.
        zooms = np.array([zoom * width / new[0], zoom * height / new[1]])
    else:
        zooms = np.array([zoom, zoom])
    # OpenCV's pixel centres lie half a pixel lower than ours.
    shift = offset + 0.5 * zooms - 0.5
    warp = np.column_stack([np.diag(zooms), shift])
    size = (crop_px, crop_px)
    return cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def carry_points(crop_from_img: Array, points_px: Array) -> Array:
    """[P, 2] picture pixels to crop pixels."""
    return points_px @ crop_from_img[:, :2].T + crop_from_img[:, 2]


def carry_intrinsics(crop_from_img: Array, K_px: Array) -> Array:
    """K of the crop: [3, 3] -> [3, 3]."""
    return np.vstack([crop_from_img, [0.0, 0.0, 1.0]]) @ K_px
