"""Gaps between digits that are modelled as chains of beads. Compiled."""

import math

import numpy as np
from numpy.typing import NDArray

from handmim.utils.kernels import njit

Array = NDArray[np.floating]


@njit(cache=True, nogil=True, error_model="numpy")
def _least_gaps(beads, radii, heel, heel_radius, tips, gaps):  # type: ignore[no-untyped-def]
    digits, num = radii.shape
    for n in range(len(beads)):
        least = np.inf
        for a in range(digits):
            for i in range(num):
                x, y, z, r = beads[n, a, i, 0], beads[n, a, i, 1], beads[n, a, i, 2], radii[a, i]
                for b in range(a + 1, digits):
                    for j in range(num):
                        dx, dy = x - beads[n, b, j, 0], y - beads[n, b, j, 1]
                        dz = z - beads[n, b, j, 2]
                        d = math.sqrt(dx * dx + dy * dy + dz * dz) - r - radii[b, j]
                        least = min(least, d)
                if i >= num - tips:
                    for j in range(heel.shape[1]):
                        dx, dy, dz = x - heel[n, j, 0], y - heel[n, j, 1], z - heel[n, j, 2]
                        d = math.sqrt(dx * dx + dy * dy + dz * dz) - r - heel_radius
                        least = min(least, d)
        gaps[n] = least


def least_gaps_m(
    beads_m: Array, radii_m: Array, heel_m: Array, heel_radius_m: float, tips: int
) -> Array:
    """Least gap between beads of different digits, and between the last beads of every digit and
    the heel of the hand.

    Args:
        beads_m: [n, D, B, 3] centres.
        radii_m: [D, B].
        heel_m: [n, H, 3] beads of the palm, all of `heel_radius_m`.
        heel_radius_m: metres.
        tips: how many of a digit's last beads must keep clear of the palm.
    Returns: [n], negative where two beads overlap.
    """
    gaps = np.empty(len(beads_m))
    _least_gaps(beads_m, radii_m, heel_m, heel_radius_m, tips, gaps)
    return gaps
