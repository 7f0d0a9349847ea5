"""F-scores of point clouds: nearest neighbours both ways, no correspondence, no surface
sampling."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

# Two samples of 778 x 778 distances in float64 stay in a core's cache.
CHUNK = 2
# Slabs that a cloud is sorted into along its widest axis: under a millimetre each on a hand.
SLABS = 256
# Candidates are looked at by sixteens: a compiled loop's leftovers cost as much as the loop.
LANES = 16


def nearest_distances_m(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from every point to the nearest of the other cloud, both ways.

    Squared distances come from one product per tile, [a, |a|^2, 1] with [-2 b, 1, |b|^2]; clouds
    are centred first and the arithmetic is float64, so the cancellation costs less than 1e-8 m.

    Args:
        a, b: [B, P, 3] and [B, Q, 3] metres.
    Returns: [B, P] and [B, Q] metres, float64.
    """
    a, b = a.double(), b.double()
    centre = b.mean(dim=1, keepdim=True)
    a, b = a - centre, b - centre
    ones_a, ones_b = torch.ones_like(a[..., :1]), torch.ones_like(b[..., :1])
    left = torch.cat([a, a.square().sum(dim=2, keepdim=True), ones_a], dim=2)
    right = torch.cat([-2 * b, ones_b, b.square().sum(dim=2, keepdim=True)], dim=2)
    from_a, from_b = [], []
    for i in range(0, len(a), CHUNK):
        d2 = torch.bmm(left[i : i + CHUNK], right[i : i + CHUNK].transpose(1, 2))
        from_a.append(d2.amin(dim=2))
        from_b.append(d2.amin(dim=1))
    return torch.cat(from_a).clamp(min=0).sqrt(), torch.cat(from_b).clamp(min=0).sqrt()


def f_scores(pred_m: Tensor, gt_m: Tensor, thresholds_m: Sequence[float]) -> Tensor:
    """Harmonic mean of the shares of points with a neighbour closer than each threshold.

    Exact in float64: the same hits as comparing every pair. Only whether a neighbour is near
    enough is looked for, not the nearest, in a compiled kernel on the CPU; tensors of other
    devices are copied there and the answer back.

    Args:
        pred_m, gt_m: [B, P, 3] and [B, Q, 3] metres, P and Q >= 1. A NaN hits nothing.
        thresholds_m: T thresholds; a hit is `<`.
    Returns: [B, T] float64, 0 where neither cloud hits.
    Raises: ValueError for other shapes.
    """
    shapes = tuple(pred_m.shape), tuple(gt_m.shape)
    if any(len(s) != 3 or s[1] < 1 or s[2] != 3 for s in shapes) or len(pred_m) != len(gt_m):
        raise ValueError(f"want [B, P, 3] and [B, Q, 3], P and Q >= 1, got {shapes}")
    clouds = [t.detach().to("cpu", torch.float64).contiguous().numpy() for t in (pred_m, gt_m)]
    order = np.argsort(np.asarray(thresholds_m, np.float64))
    limits = np.array([_largest_hit_m2(float(thresholds_m[i])) for i in order])
    hits = np.zeros((2, len(pred_m), len(limits)), np.int64)
    if hits.size:
        hit_counts(clouds[0], clouds[1], limits, hits[0], hits[1])
    precision, recall = hits[0] / pred_m.shape[1], hits[1] / gt_m.shape[1]
    scores = np.empty_like(precision)
    scores[:, order] = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return torch.from_numpy(scores).to(pred_m.device)


def _largest_hit_m2(threshold_m: float) -> float:
    """The largest squared distance whose root is below the threshold, -1 where there is none: what
    `distance < threshold` means without a root per pair."""
    if not threshold_m > 0:
        return -1.0
    limit = threshold_m * threshold_m
    while math.sqrt(limit) >= threshold_m:
        limit = math.nextafter(limit, 0.0)
    while math.sqrt(math.nextafter(limit, math.inf)) < threshold_m:
        limit = math.nextafter(limit, math.inf)
    return limit


# No fastmath below: it would let the compiler round distances at the threshold differently.


@njit(cache=True, nogil=True)
def _slab(value, low, per_m):  # type: ignore[no-untyped-def]
    s = (value - low) * per_m
    if not s > 0:  # NaN too
        return 0
    return int(s) if s < SLABS else SLABS - 1


@njit(cache=True, nogil=True)
def _sort_into_slabs(points, axis, low, per_m, xyz, starts):  # type: ignore[no-untyped-def]
    """[P, 3] points -> [3, P + LANES] by slab, and [SLABS + 1] where each slab starts."""
    starts[:] = 0
    for i in range(points.shape[0]):
        starts[_slab(points[i, axis], low, per_m) + 1] += 1
    for s in range(SLABS):
        starts[s + 1] += starts[s]
    for i in range(points.shape[0]):
        s = _slab(points[i, axis], low, per_m)
        for k in range(3):
            xyz[k, starts[s]] = points[i, k]
        starts[s] += 1  # ends where the next slab starts
    for s in range(SLABS, 0, -1):
        starts[s] = starts[s - 1]
    starts[0] = 0


@njit(cache=True, nogil=True)
def _any_within(xs, ys, zs, x, y, z, limit):  # type: ignore[no-untyped-def]
    # Counting without an early exit becomes vector instructions, and is faster for it.
    count = 0
    for j in range(xs.shape[0]):
        dx, dy, dz = xs[j] - x, ys[j] - y, zs[j] - z
        count += dx * dx + dy * dy + dz * dz <= limit
    return count > 0


@njit(cache=True, nogil=True)
def _count(points, known, cloud, grid, limits, reach, hits):  # type: ignore[no-untyped-def]
    """Add to `hits` the points with a neighbour in a sorted cloud, all of them or some `known`."""
    xyz, starts, box = cloud
    axis, low, per_m = grid
    num = len(limits)
    for i in range(points.shape[0]):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        level = known[i]
        dx = max(box[0, 0] - x, x - box[0, 1], 0.0)
        dy = max(box[1, 0] - y, y - box[1, 1], 0.0)
        dz = max(box[2, 0] - z, z - box[2, 1], 0.0)
        if dx * dx + dy * dy + dz * dz <= limits[num - 1]:
            s = _slab(points[i, axis], low, per_m)
            for t in range(level):
                a, b = starts[max(s - reach[t], 0)], starts[min(s + reach[t] + 1, SLABS)]
                b = a + (b - a + LANES - 1) // LANES * LANES
                if _any_within(xyz[0, a:b], xyz[1, a:b], xyz[2, a:b], x, y, z, limits[t]):
                    level = t
                    break
        for t in range(level, num):
            hits[t] += 1


@njit(cache=True, nogil=True)
def hit_counts(pred, gt, limits, pred_hits, gt_hits):  # type: ignore[no-untyped-def]
    """Numbers of points with a neighbour in the other cloud within each limit.

    A neighbour within reach lies in the slabs within reach; where clouds correspond, the point of
    the same index settles most before any search.

    Args:
        pred, gt: [B, P, 3] and [B, Q, 3] float64 metres.
        limits: [T] squared metres, rising; a hit is `<=`.
        pred_hits, gt_hits: [B, T] out, zeros on entry.
    """
    num, p, q = len(limits), pred.shape[1], gt.shape[1]
    # the room behind the points is infinitely far from all of them
    pred_xyz, gt_xyz = np.full((3, p + LANES), np.inf), np.full((3, q + LANES), np.inf)
    pred_starts, gt_starts = np.empty(SLABS + 1, np.int64), np.empty(SLABS + 1, np.int64)
    pred_box, gt_box = np.empty((3, 2)), np.empty((3, 2))
    known, reach = np.empty(max(p, q), np.int64), np.empty(num, np.int64)
    for b in range(pred.shape[0]):
        axis = 0
        for cloud, box in ((pred[b], pred_box), (gt[b], gt_box)):
            for k in range(3):
                low, high = np.inf, -np.inf
                for i in range(cloud.shape[0]):
                    v = cloud[i, k]
                    low = v if v < low else low
                    high = v if v > high else high
                box[k, 0], box[k, 1] = low, high
        for k in range(1, 3):
            if gt_box[k, 1] - gt_box[k, 0] > gt_box[axis, 1] - gt_box[axis, 0]:
                axis = k
        low = gt_box[axis, 0]
        per_m = SLABS / max(gt_box[axis, 1] - low, 1e-9)
        for t in range(num):
            # the margin is far above what rounding does to a slab's number
            slabs = math.sqrt(max(limits[t], 0.0)) * per_m + 1e-6
            reach[t] = int(slabs) + 1 if slabs < SLABS else SLABS
        _sort_into_slabs(pred[b], axis, low, per_m, pred_xyz, pred_starts)
        _sort_into_slabs(gt[b], axis, low, per_m, gt_xyz, gt_starts)
        known[:] = num
        if p == q:
            for i in range(p):
                dx, dy = pred[b, i, 0] - gt[b, i, 0], pred[b, i, 1] - gt[b, i, 1]
                dz = pred[b, i, 2] - gt[b, i, 2]
                d2 = dx * dx + dy * dy + dz * dz
                level = 0
                while level < num and not d2 <= limits[level]:
                    level += 1
                known[i] = level
        grid = (axis, low, per_m)
        gt_cloud, pred_cloud = (gt_xyz, gt_starts, gt_box), (pred_xyz, pred_starts, pred_box)
        _count(pred[b], known, gt_cloud, grid, limits, reach, pred_hits[b])
        _count(gt[b], known, pred_cloud, grid, limits, reach, gt_hits[b])
