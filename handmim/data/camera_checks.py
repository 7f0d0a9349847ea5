"""Whether intrinsics can be those of the images."""

import numpy as np
from numpy.typing import NDArray

from handmim.utils.findings import Notes

Array = NDArray[np.float64]

FOCAL = (0.3, 20.0)  # in longer sides of the picture; crops have long ones
SQUARE = 1.2  # largest ratio of the two focal lengths


def usable(K_px: Array) -> NDArray[np.bool_]:
    """Which of [n, 3, 3] matrices are those of any camera: [n]. Zeros and singular ones are not."""
    form = (np.abs(K_px[:, 2] - [0, 0, 1]).max(axis=1) < 1e-6) & (K_px[:, 1, 0] == 0)
    return form & (K_px[:, 0, 0] > 0) & (K_px[:, 1, 1] > 0)


def plausible(K_px: Array, width_px: int, height_px: int) -> NDArray[np.bool_]:
    """Which of [n, 3, 3] intrinsics a camera of such pictures can have: [n]."""
    fx, fy = K_px[:, 0, 0], K_px[:, 1, 1]
    longer = max(width_px, height_px)
    form = usable(K_px) & (np.abs(K_px[:, 0, 1]) < 0.1 * longer)
    focal = np.minimum(fx, fy) > FOCAL[0] * longer
    focal &= np.maximum(fx, fy) < FOCAL[1] * longer
    focal &= np.maximum(fx, fy) < SQUARE * np.minimum(fx, fy)
    # The centre of a crop's camera may lie outside of the crop.
    centre = (np.abs(K_px[:, :2, 2] - np.array([width_px, height_px]) / 2) < longer).all(axis=1)
    return form & focal & centre


def note_intrinsics(
    notes: Notes, prefix: str, K_px: Array, size_px: tuple[int, int], where: str
) -> bool:
    """Note whether [n, 3, 3] intrinsics are possible for pictures of (width, height)."""
    good = plausible(K_px, *size_px)
    fx, cx, cy = (float(np.median(K_px[:, i, j])) for i, j in ((0, 0), (0, 2), (1, 2)))
    notes.judge(
        bool(good.all()),
        f"{prefix}-k",
        f"{where}: {good.mean():.0%} of the intrinsics are possible for {size_px[0]} x "
        f"{size_px[1]} px (medians: focal length {fx:.0f} px, centre {cx:.0f}, {cy:.0f})",
        f"unpack the original of {where} again: K is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
        "pixels of the stored pictures",
    )
    return bool(good.all())
