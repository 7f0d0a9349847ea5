"""Distance-like functions of points [n, 3] in mm and their smooth unions: the clay of the
sculpt."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def cone(p, a, b, ra, rb, up=None, flat=1.0):
    """Round cone from a (radius ra) to b (rb), squashed by `flat` along `up`."""
    q = p - a
    if up is not None:
        q = q + (q @ up * (1 / flat - 1))[:, None] * up
        b = b + (b - a) @ up * (1 / flat - 1) * up
    ab = b - a
    h = np.clip(q @ ab / (ab @ ab + 1e-9), 0, 1)
    return np.linalg.norm(q - h[:, None] * ab, axis=1) - (ra + (rb - ra) * h)


def blob(p, c, R, radii):
    """Ellipsoid with axes in the columns of R."""
    q = (p - c) @ R / np.asarray(radii)
    k0 = np.linalg.norm(q, axis=1)
    return k0 * (k0 - 1) / (np.linalg.norm(q / np.asarray(radii), axis=1) + 1e-9)


def smin(a, b, k):
    """Smooth minimum of two distances with blend radius k."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * k / 4


def fuse(parts):
    """Smooth union of (distance, blend radius) pairs, in order."""
    d = parts[0][0]
    for e, k in parts[1:]:
        d = smin(d, e, k)
    return d


def segment(p, a, b):
    """Distance of points to the segment ab."""
    ab = b - a
    h = np.clip((p - a) @ ab / (ab @ ab), 0, 1)
    return np.linalg.norm(p - a - h[:, None] * ab, axis=1)


def ramp(x, lo, hi):
    """Smooth step from 0 at lo to 1 at hi."""
    t = np.clip((x - lo) / (hi - lo), 0, 1)
    return t * t * (3 - 2 * t)
