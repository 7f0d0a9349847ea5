"""F-scores of point clouds: nearest neighbours both ways, no correspondence, no surface sampling.

Hits are exactly those of all pairs compared in float64: most points are decided in float32, whose
error is bounded, those nearer to a threshold than the bound in float64.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handmim.utils.kernels import njit

# Slabs that a cloud is sorted into along its widest axis: under a millimetre each on a hand.
SLABS = 256
# Candidates are compared in blocks of 16: a compiled loop's leftovers cost as much as the loop.
LANES = 16
FAR_M = np.float32(1e18)  # its square is still a number
NOBODY = np.int32(2**31 - 1)  # above the bits of any number
# Distances in float32 are off by less than 8 of its units (2**-24) times size and reach of the
# clouds: rounded coordinates, differences, squares and sums. The rest is margin.
ERROR = 64 * 2.0**-24


def squared_limits(
    thresholds_m: Sequence[float],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices of the thresholds from the lowest to the highest, and for each in this order the
    largest squared distance whose root is below it, -1 where there is none."""
    order = np.argsort(np.asarray(thresholds_m, np.float64))
    limits = []
    for threshold_m in (float(thresholds_m[i]) for i in order):
        limit = threshold_m * threshold_m if threshold_m > 0 else -1.0
        while limit > 0 and math.sqrt(limit) >= threshold_m:
            limit = math.nextafter(limit, 0.0)
        while limit >= 0 and math.sqrt(math.nextafter(limit, math.inf)) < threshold_m:
            limit = math.nextafter(limit, math.inf)
        limits.append(limit)
    return order, np.array(limits, np.float64)


def harmonic_means(
    precision: NDArray[np.float64], recall: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.float64]:
    """F-scores of shares [..., T] by rising threshold, in the thresholds' own order; 0 without any
    hit."""
    scores = np.empty_like(precision)
    scores[..., order] = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return scores


@njit(cache=True, nogil=True)
def _bits(value):  # type: ignore[no-untyped-def]
    # A float32 as an integer: numbers >= 0 keep their order, and the smallest of many is found by
    # vector instructions, which floats would need fastmath for.
    return np.float32(value).view(np.int32)


@njit(cache=True, nogil=True)
def _slab(value, low, per_m):  # type: ignore[no-untyped-def]
    s = (value - low) * per_m
    if not s > 0:  # NaN too
        return 0
    return int(s) if s < SLABS else SLABS - 1


@njit(cache=True, nogil=True)
def _sort_by_slab(points, slabs, centre, behind, sorted_cloud):  # type: ignore[no-untyped-def]
    """Fill `sorted_cloud` (see `_cloud_of`) with points [P, 3] relative to a centre, by their slab
    [P]; those of slab SLABS are left out, `behind` is the coordinate of what follows the points."""
    xyz, starts, order = sorted_cloud
    starts[:] = 0
    for i in range(points.shape[0]):
        if slabs[i] < SLABS:
            starts[slabs[i] + 1] += 1
    for s in range(SLABS):
        starts[s + 1] += starts[s]
    for i in range(points.shape[0]):
        if slabs[i] < SLABS:
            at = starts[slabs[i]]
            starts[slabs[i]] += 1  # ends where the next slab starts
            order[at] = i
            for k in range(3):
                v = np.float32(points[i, k] - centre[k])
                xyz[k, at] = v if abs(v) < FAR_M else FAR_M  # NaN too
    for s in range(SLABS, 0, -1):
        starts[s] = starts[s - 1]
    starts[0] = 0
    xyz[:, starts[SLABS] : starts[SLABS] + LANES] = behind


# Contracted products round once instead of twice, which the bound allows for.
@njit(cache=True, nogil=True, fastmath={"contract"})
def _nearest_of_four(xyz, start, end, queries, i, nearest):  # type: ignore[no-untyped-def]
    """Smallest squared distances, as bits, of queries [3, P] i to i + 3 to the others xyz [3, Q]
    from start to end, and of these, `nearest` [Q], in and out."""
    x0, y0, z0 = queries[0, i], queries[1, i], queries[2, i]
    x1, y1, z1 = queries[0, i + 1], queries[1, i + 1], queries[2, i + 1]
    x2, y2, z2 = queries[0, i + 2], queries[1, i + 2], queries[2, i + 2]
    x3, y3, z3 = queries[0, i + 3], queries[1, i + 3], queries[2, i + 3]
    b0 = b1 = b2 = b3 = NOBODY
    for j in range(np.uint64(start), np.uint64(end)):
        x, y, z = xyz[0, j], xyz[1, j], xyz[2, j]
        v0 = _bits((x - x0) * (x - x0) + (y - y0) * (y - y0) + (z - z0) * (z - z0))
        v1 = _bits((x - x1) * (x - x1) + (y - y1) * (y - y1) + (z - z1) * (z - z1))
        v2 = _bits((x - x2) * (x - x2) + (y - y2) * (y - y2) + (z - z2) * (z - z2))
        v3 = _bits((x - x3) * (x - x3) + (y - y3) * (y - y3) + (z - z3) * (z - z3))
        b0, b1, b2, b3 = min(b0, v0), min(b1, v1), min(b2, v2), min(b3, v3)
        nearest[j] = min(nearest[j], min(min(v0, v1), min(v2, v3)))
    return b0, b1, b2, b3


@njit(cache=True, nogil=True)
def _cloud_of(p):  # type: ignore[no-untyped-def]
    # points by slab; where each slab starts, then how many points there are; their indices
    xyz = np.empty((3, p + LANES), np.float32)
    return xyz, np.empty(SLABS + 1, np.int64), np.empty(p, np.int64)


@njit(cache=True, nogil=True)
def workspace(p, q, num):  # type: ignore[no-untyped-def]
    """Memory for clouds of p and q points and `num` limits, for one sample after another."""
    queries = _cloud_of(p)
    targets = _cloud_of(q)
    slabs, found = np.empty(max(p, q), np.int64), np.empty(p + LANES, np.int32)
    nearest, bounds = np.empty(q + LANES, np.int32), np.empty((2, num), np.int32)
    return queries, targets, slabs, found, nearest, bounds, np.empty((3, 3))


@njit(cache=True, nogil=True)
def sort_gt(gt, limits, work):  # type: ignore[no-untyped-def]
    """Prepare a ground-truth cloud [Q, 3] for `add_hits`: the axis that slabs are counted on, their
    start and number per metre."""
    _, targets, slabs, _, _, bounds, box = work
    low, high, centre = box[0], box[1], box[2]
    low[:], high[:] = np.inf, -np.inf
    for i in range(gt.shape[0]):
        for k in range(3):
            v = gt[i, k]
            low[k] = v if v < low[k] else low[k]
            high[k] = v if v > high[k] else high[k]
    axis = 0
    for k in range(3):
        centre[k] = (low[k] + high[k]) / 2
        if high[k] - low[k] > high[axis] - low[axis]:
            axis = k
    size = high[axis] - low[axis]
    per_m = SLABS / max(size, 1e-9)
    for i in range(gt.shape[0]):
        slabs[i] = _slab(gt[i, axis], low[axis], per_m)
    _sort_by_slab(gt, slabs, centre, FAR_M, targets)
    error = ERROR * (size + math.sqrt(max(limits[-1], 0.0))) + 1e-18  # squares below 1e-38 vanish
    for t in range(len(limits)):
        distance = math.sqrt(max(limits[t], 0.0))
        bounds[0, t], bounds[1, t] = -1, NOBODY
        if error < 1e9:  # else a point or a limit is infinite, and all is compared in float64
            bounds[1, t] = _bits((distance + error) ** 2)
            if distance > error:
                bounds[0, t] = _bits((distance - error) ** 2)
    return axis, low[axis], per_m


@njit(cache=True, nogil=True)
def _decide(squares, who, num, points, others, limits, bounds, hits):  # type: ignore[no-untyped-def]
    """Count points for each limit that one of the others is within; `squares` are bits of the
    squared distance to the nearest of these, `who` the indices of the points."""
    for t in range(len(limits)):
        sure, maybe = bounds[0, t], bounds[1, t]
        doubts = 0
        for i in range(num):
            hits[t] += squares[i] < sure
            doubts += (squares[i] >= sure) & (squares[i] <= maybe)
        for i in range(num if doubts else 0):
            if sure <= squares[i] <= maybe:
                x, y, z = points[who[i], 0], points[who[i], 1], points[who[i], 2]
                count = 0  # no fastmath: it would round distances at the threshold differently
                for j in range(others.shape[0]):
                    dx, dy, dz = others[j, 0] - x, others[j, 1] - y, others[j, 2] - z
                    count += dx * dx + dy * dy + dz * dz <= limits[t]
                hits[t] += count > 0


@njit(cache=True, nogil=True)
def add_hits(pred, gt, grid, limits, work, pred_hits, gt_hits):  # type: ignore[no-untyped-def]
    """Count points with a neighbour in the other cloud within each limit, both ways at once.

    A neighbour within reach lies in the slabs within reach, so predicted points of one slab share
    the same run of true ones.

    Args:
        pred, gt: [P, 3] and [Q, 3] float64 metres, the latter as `sort_gt` had it.
        grid, work: of `sort_gt` and `workspace`.
        limits: [T] squared metres, rising; a hit is `<=`.
        pred_hits, gt_hits: [T] out, counts are added.
    """
    queries, (xyz, starts, order), slabs, found, nearest, bounds, box = work
    low, high, centre = box[0], box[1], box[2]
    axis, start, per_m = grid
    if not limits[-1] >= 0:
        return
    # margins far above what rounding does to a difference or a slab's number
    reach_m = math.sqrt(limits[-1]) * (1 + 1e-9)
    reach_slabs = reach_m * per_m + 1e-6
    reach = int(reach_slabs) + 1 if reach_slabs < SLABS else SLABS
    for i in range(pred.shape[0]):
        inside = True  # a NaN is not
        for k in range(3):
            inside &= (low[k] - pred[i, k] <= reach_m) & (pred[i, k] - high[k] <= reach_m)
        slabs[i] = _slab(pred[i, axis], start, per_m) if inside else SLABS
    _sort_by_slab(pred, slabs, centre, -FAR_M, queries)
    num, who = queries[1][SLABS], queries[2]
    nearest[:] = NOBODY
    for i in range(0, num, 4):
        first, last = slabs[who[i]], slabs[who[min(i + 3, num - 1)]]
        a, b = starts[max(first - reach, 0)], starts[min(last + reach + 1, SLABS)]
        b = a + (b - a + LANES - 1) // LANES * LANES
        found[i], found[i + 1], found[i + 2], found[i + 3] = _nearest_of_four(
            xyz, a, b, queries[0], i, nearest
        )
    _decide(found, who, num, pred, gt, limits, bounds, pred_hits)
    _decide(nearest, order, gt.shape[0], gt, pred, limits, bounds, gt_hits)
