"""Where points fall on masks."""

import cv2
import numpy as np
from numpy.typing import NDArray


def shares_in_masks(
    points_px: NDArray[np.floating], masks: list[NDArray[np.bool_]]
) -> tuple[float, float]:
    """Shares of points that fall on masks.

    Args:
        points_px: [n, P, 2].
        masks: n, of [H, W].
    Returns: mean share on the own mask, and on all others': near each other when labels and
        pictures do not belong together. 0 for the others when there is one sample.
    """
    shares = np.zeros((len(masks), len(masks)))
    for column, mask in enumerate(masks):
        height, width = mask.shape
        margin = 1 + 2 * round(0.012 * max(mask.shape))
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((margin, margin), np.uint8)) > 0
        # far and undefined places count as outside
        px = np.nan_to_num(points_px, nan=-1.0).clip(-1, max(mask.shape))
        at = np.floor(px).astype(int)
        inside = ((at >= 0) & (at < [width, height])).all(axis=2)
        at = at.clip(0, [width - 1, height - 1])
        shares[:, column] = (inside & grown[at[..., 1], at[..., 0]]).mean(axis=1)
    others = shares[~np.eye(len(masks), dtype=bool)]
    return float(np.diag(shares).mean()), float(others.mean()) if len(others) else 0.0
