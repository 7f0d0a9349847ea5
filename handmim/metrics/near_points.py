"""Compiled counts of points that have a neighbour in another cloud: what F-scores are made of.

The hits are exactly those of all pairs compared in float64. Most points are settled in float32,
whose error is bounded; those nearer to a threshold than the bound are compared in float64.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from handmim.utils.kernels import njit

# Slabs that a cloud is sorted into along its widest axis: under a millimetre each on a hand.
SLABS = 256
# Candidates are looked at by sixteens: a compiled loop's leftovers cost as much as the loop.
LANES = 16
FAR_M = np.float32(1e18)  # its square is still a number
NOBODY = np.int32(2**31 - 1)  # above the bits of any number
# Distances in float32 are off by less than 8 of its units (2**-24) times size and reach of the
# clouds: rounded coordinates, differences, squares and sums. The rest is margin.
ERROR = 64 * 2.0**-24


def _float32_bits(_context, value):  # type: ignore[no-untyped-def]
    """A float32's bits as an integer: numbers >= 0 keep their order. The smallest of many integers
    is found by vector instructions, which floats would need fastmath for."""

    def same_bits(_, builder, __, values):  # type: ignore[no-untyped-def]
        return builder.bitcast(values[0], ir.IntType(32))

    return types.int32(types.float32), same_bits


_bits: Any = intrinsic(_float32_bits)


@njit(cache=True, nogil=True)
def _slab(value, low, per_m):  # type: ignore[no-untyped-def]
    s = (value - low) * per_m
    if not s > 0:  # NaN too
        return 0
    return int(s) if s < SLABS else SLABS - 1


@njit(cache=True, nogil=True)
def _sort_by_slab(points, slabs, centre, behind, sorted_cloud):  # type: ignore[no-untyped-def]
    """Points [P, 3] relative to a centre, those of slab SLABS left out.

    Args:
        points, slabs: [P, 3] and [P].
        centre: [3].
        behind: coordinate of what follows the points.
        sorted_cloud: out, [3, P + LANES] points by slab; [SLABS + 1] where each slab starts, and
            how many points there are; [P] their indices.
    """
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
def _look(xyz, start, end, asking, i, nearest):  # type: ignore[no-untyped-def]
    """Distances of four points to a run of others: bits of the squares.

    Args:
        xyz: [3, Q] the others, of which [start, end) are looked at.
        asking: [3, P] whose columns i to i + 3 are the four.
        nearest: [Q] smallest so far of the others, in and out.
    Returns: the smallest of each of the four.
    """
    x0, y0, z0 = asking[0, i], asking[1, i], asking[2, i]
    x1, y1, z1 = asking[0, i + 1], asking[1, i + 1], asking[2, i + 1]
    x2, y2, z2 = asking[0, i + 2], asking[1, i + 2], asking[2, i + 2]
    x3, y3, z3 = asking[0, i + 3], asking[1, i + 3], asking[2, i + 3]
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
def _any_within(points, x, y, z, limit):  # type: ignore[no-untyped-def]
    # No fastmath: it would let the compiler round distances at the threshold differently.
    count = 0
    for j in range(points.shape[0]):
        dx, dy, dz = points[j, 0] - x, points[j, 1] - y, points[j, 2] - z
        count += dx * dx + dy * dy + dz * dz <= limit
    return count > 0


@njit(cache=True, nogil=True)
def _cloud_of(p):  # type: ignore[no-untyped-def]
    xyz = np.empty((3, p + LANES), np.float32)
    return xyz, np.empty(SLABS + 1, np.int64), np.empty(p, np.int64)


@njit(cache=True, nogil=True)
def room_for(p, q, num):  # type: ignore[no-untyped-def]
    """Memory for clouds of p and q points and `num` limits, for one sample after another."""
    asking = _cloud_of(p)
    truth = _cloud_of(q)
    slabs, found = np.empty(max(p, q), np.int64), np.empty(p + LANES, np.int32)
    nearest, bounds = np.empty(q + LANES, np.int32), np.empty((2, num), np.int32)
    return asking, truth, slabs, found, nearest, bounds, np.empty((3, 3))


@njit(cache=True, nogil=True)
def sort_truth(gt, limits, room):  # type: ignore[no-untyped-def]
    """Make a true cloud ready for `add_hits`.

    Args:
        gt: [Q, 3] float64 metres.
        limits: [T] squared metres, rising.
        room: of `room_for`.
    Returns: the axis that slabs are counted on, their start and number per metre.
    """
    _, truth, slabs, _, _, bounds, box = room
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
    _sort_by_slab(gt, slabs, centre, FAR_M, truth)
    error = ERROR * (size + math.sqrt(max(limits[-1], 0.0))) + 1e-18  # squares below 1e-38 vanish
    for t in range(len(limits)):
        distance = math.sqrt(max(limits[t], 0.0))
        bounds[0, t], bounds[1, t] = -1, NOBODY
        if error < 1e9:  # else a point or a limit is infinite, and all is compared in float64
            bounds[1, t] = _bits(np.float32((distance + error) ** 2))
            if distance > error:
                bounds[0, t] = _bits(np.float32((distance - error) ** 2))
    return axis, low[axis], per_m


@njit(cache=True, nogil=True)
def _settle(squares, who, num, points, others, limits, bounds, hits):  # type: ignore[no-untyped-def]
    """Count points for each limit that one of the others is within.

    Args:
        squares, who: [>= num] bits of the squared distance to the nearest of the others, and the
            index of the point.
        points, others: [P, 3] and [Q, 3].
    """
    for t in range(len(limits)):
        sure, maybe = bounds[0, t], bounds[1, t]
        doubts = 0
        for i in range(num):
            hits[t] += squares[i] < sure
            doubts += (squares[i] >= sure) & (squares[i] <= maybe)
        for i in range(num if doubts else 0):
            if sure <= squares[i] <= maybe:
                x, y, z = points[who[i], 0], points[who[i], 1], points[who[i], 2]
                hits[t] += _any_within(others, x, y, z, limits[t])


@njit(cache=True, nogil=True)
def add_hits(pred, gt, grid, limits, room, pred_hits, gt_hits):  # type: ignore[no-untyped-def]
    """Count points with a neighbour in the other cloud within each limit, both ways at once.

    A neighbour within reach lies in the slabs within reach, so predicted points of one slab look at
    the same run of true ones.

    Args:
        pred: [P, 3] float64 metres.
        gt: [Q, 3], as `sort_truth` had it.
        grid: of `sort_truth`.
        limits: [T] squared metres, rising; a hit is `<=`.
        room: of `room_for`.
        pred_hits, gt_hits: [T] out, counts are added.
    """
    asking, (xyz, starts, order), slabs, found, nearest, bounds, box = room
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
    _sort_by_slab(pred, slabs, centre, -FAR_M, asking)
    num, who = asking[1][SLABS], asking[2]
    nearest[:] = NOBODY
    for i in range(0, num, 4):
        first, last = slabs[who[i]], slabs[who[min(i + 3, num - 1)]]
        a, b = starts[max(first - reach, 0)], starts[min(last + reach + 1, SLABS)]
        b = a + (b - a + LANES - 1) // LANES * LANES
        found[i], found[i + 1], found[i + 2], found[i + 3] = _look(xyz, a, b, asking[0], i, nearest)
    _settle(found, who, num, pred, gt, limits, bounds, pred_hits)
    _settle(nearest, order, gt.shape[0], gt, pred, limits, bounds, gt_hits)


@njit(cache=True, nogil=True)
def hit_counts(pred, gt, limits, pred_hits, gt_hits):  # type: ignore[no-untyped-def]
    """`add_hits` of B samples.

    Args:
        pred, gt: [B, P, 3] and [B, Q, 3] float64 metres.
        limits: [T] squared metres, rising, T >= 1; a hit is `<=`.
        pred_hits, gt_hits: [B, T] out, counts are added.
    """
    room = room_for(pred.shape[1], gt.shape[1], len(limits))
    for b in range(pred.shape[0]):
        grid = sort_truth(gt[b], limits, room)
        add_hits(pred[b], gt[b], grid, limits, room, pred_hits[b], gt_hits[b])
