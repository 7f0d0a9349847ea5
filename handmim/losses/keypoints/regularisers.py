"""Terms against the collapses that regression allows: one spot, one template, one rigid shape."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.utils.ranks import gathered, mean_over_ranks


def spread_hinge(points: Tensor, min_std: float) -> Tensor:
    """Penalty when a sample's points bunch up: mean over samples and axes of
    relu(min_std - std over points)^2, [..., K, d] -> scalar."""
    std = (points.var(dim=-2, correction=0) + 1e-8).sqrt()
    return F.relu(min_std - std).square().mean()


def repulsion(points: Tensor, min_distance: float) -> Tensor:
    """Mean over pairs of a sample's points of relu(min_distance - |k_i - k_j|)^2: [..., K, d] ->
    scalar."""
    k = points.shape[-2]
    i, j = torch.triu_indices(k, k, offset=1, device=points.device)
    gap = ((points[..., i, :] - points[..., j, :]).square().sum(dim=-1) + 1e-12).sqrt()
    return F.relu(min_distance - gap).square().mean()


def unit_shapes(points: Tensor) -> Tensor:
    """Without position and size: mean 0, root mean square distance 1; [..., K, d] -> the same."""
    centred = points - points.mean(dim=-2, keepdim=True)
    size = (centred.square().sum(dim=-1).mean(dim=-1) + 1e-6).sqrt()
    return centred / size[..., None, None]


def turned_to(shapes: Tensor, reference: Tensor) -> Tensor:
    """Each shape turned in the picture's plane to fit a reference best: [..., K, d], [K, d]."""
    x, y = shapes[..., 0], shapes[..., 1]
    dot = (x * reference[:, 0] + y * reference[:, 1]).sum(dim=-1)
    cross = (x * reference[:, 1] - y * reference[:, 0]).sum(dim=-1)
    norm = (dot.square() + cross.square() + 1e-8).sqrt()
    cos, sin = (dot / norm)[..., None], (cross / norm)[..., None]
    plane = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    return torch.cat([plane, shapes[..., 2:]], dim=-1)


@torch.no_grad()
def mean_shape(shapes: Tensor, *, num_rounds: int = 2, sync: bool = False) -> Tensor:
    """Mean of a batch's unit shapes after turning them to a common orientation.

    Each batch starts from the same circle of K points, so that its mean does not face anywhere by
    chance. Stands for METHOD's moving average of the mean shape: the batch's own follows at once.

    Args:
        shapes: [..., K, d] of `unit_shapes`.
        num_rounds: times that shapes are turned to the mean so far.
        sync: mean over all processes.
    Returns: [K, d], no gradient.
    """
    k, d = shapes.shape[-2:]
    angle = torch.arange(k, device=shapes.device) * (2.0 * math.pi / k)
    reference = shapes.new_zeros(k, d)
    reference[:, 0], reference[:, 1] = angle.cos(), angle.sin()
    for _ in range(num_rounds):
        reference = turned_to(shapes, reference).flatten(0, -3).mean(dim=0)
        reference = mean_over_ranks(reference) if sync else reference
    return reference


def canonical_shapes(
    points: Tensor, reference: Tensor | None = None, *, sync: bool = False
) -> Tensor:
    """Remove position, size and in-plane rotation, so that only articulation is left.

    Args:
        points: [..., K, d].
        reference: [K, d] unit shape to turn to; None takes the batch's own mean shape.
        sync: the batch is that of all processes.
    Returns: [..., K * d].
    """
    shapes = unit_shapes(points)
    reference = mean_shape(shapes.detach(), sync=sync) if reference is None else reference
    return turned_to(shapes, reference).flatten(-2)


def articulation_variance(
    points: Tensor, min_std: float, covariance_weight: float, *, sync: bool = False
) -> Tensor:
    """VICReg-like hinge on canonical shapes: each coordinate must vary over the batch, none twice.

    Args:
        points: [M, K, d].
        min_std: standard deviation asked of every coordinate.
        covariance_weight: weight of the squared off-diagonal covariances, summed and divided by
            the number of coordinates.
        sync: the samples of all processes.
    Returns: scalar; 0 for fewer than two samples.
    """
    q = canonical_shapes(points, sync=sync)
    q = gathered(q)[0] if sync else q
    if len(q) < 2:
        return q.sum() * 0.0
    q = q - q.mean(dim=0)
    cov = q.T @ q / (len(q) - 1)
    std = (cov.diagonal() + 1e-8).sqrt()
    off_diagonal = cov.square().sum() - cov.diagonal().square().sum()
    return F.relu(min_std - std).square().mean() + covariance_weight * off_diagonal / len(cov)
