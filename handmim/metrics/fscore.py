"""F-scores of point clouds: nearest neighbours both ways, no correspondence, no surface
sampling."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.metrics.near_points import hit_counts

# Two samples of 778 x 778 distances in float64 stay in a core's cache.
CHUNK = 2


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
    order, limits = squared_limits(thresholds_m)
    hits = np.zeros((2, len(pred_m), len(limits)), np.int64)
    if hits.size:
        hit_counts(clouds[0], clouds[1], limits, hits[0], hits[1])
    shares = hits[0] / pred_m.shape[1], hits[1] / gt_m.shape[1]
    return torch.from_numpy(harmonic_means(*shares, order)).to(pred_m.device)


def squared_limits(
    thresholds_m: Sequence[float],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places of the thresholds from the lowest to the highest, and for each in this order the
    largest squared distance that is a hit."""
    order = np.argsort(np.asarray(thresholds_m, np.float64))
    return order, np.array([_largest_hit_m2(float(thresholds_m[i])) for i in order])


def harmonic_means(
    precision: NDArray[np.float64], recall: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.float64]:
    """F-scores of shares [B, T] by rising threshold, put where the thresholds stood."""
    scores = np.empty_like(precision)
    scores[:, order] = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return scores


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
