"""F-scores of point clouds: nearest neighbours both ways, no correspondence, no surface
sampling."""

from collections.abc import Sequence

import torch
from torch import Tensor

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

    Args:
        pred_m, gt_m: [B, P, 3] and [B, Q, 3] metres.
        thresholds_m: T thresholds; a hit is `<`.
    Returns: [B, T], 0 where neither cloud hits.
    """
    from_pred, from_gt = nearest_distances_m(pred_m, gt_m)
    columns = []
    for threshold in thresholds_m:
        precision = (from_pred < threshold).double().mean(dim=1)
        recall = (from_gt < threshold).double().mean(dim=1)
        total = precision + recall
        columns.append(torch.where(total > 0, 2 * precision * recall / total.clamp(min=1e-12), 0.0))
    return torch.stack(columns, dim=1)
