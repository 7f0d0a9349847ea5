"""Shapes of point sets: hinges against collapse, and contrast between samples.

The hinges act against the collapses that regression allows: all points at one location, one
template, one rigid shape.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.geometry.crop import to_source
from handmim.types import PretrainBatch
from handmim.utils.ranks import gathered, mean_over_ranks

EMBEDS = ("shape", "canonical")


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


def rotated_to(shapes: Tensor, reference: Tensor) -> Tensor:
    """Each shape rotated in the image plane to fit a reference best: [..., K, d], [K, d]."""
    x, y = shapes[..., 0], shapes[..., 1]
    dot = (x * reference[:, 0] + y * reference[:, 1]).sum(dim=-1)
    cross = (x * reference[:, 1] - y * reference[:, 0]).sum(dim=-1)
    norm = (dot.square() + cross.square() + 1e-8).sqrt()
    cos, sin = (dot / norm)[..., None], (cross / norm)[..., None]
    plane = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    return torch.cat([plane, shapes[..., 2:]], dim=-1)


@torch.no_grad()
def mean_shape(shapes: Tensor, *, num_rounds: int = 2, sync: bool = False) -> Tensor:
    """Mean of a batch's unit shapes after rotating them to a common orientation.

    Each batch starts from the same circle of K points, so that the mean's orientation is not
    random.

    Args:
        shapes: [..., K, d] of `unit_shapes`.
        num_rounds: times that shapes are rotated to the mean so far.
        sync: mean over all processes.
    Returns: [K, d], no gradient.
    """
    k, d = shapes.shape[-2:]
    angle = torch.arange(k, device=shapes.device) * (2.0 * math.pi / k)
    reference = shapes.new_zeros(k, d)
    reference[:, 0], reference[:, 1] = angle.cos(), angle.sin()
    for _ in range(num_rounds):
        reference = rotated_to(shapes, reference).flatten(0, -3).mean(dim=0)
        reference = mean_over_ranks(reference) if sync else reference
    return reference


def canonical_shapes(
    points: Tensor, reference: Tensor | None = None, *, sync: bool = False
) -> Tensor:
    """Remove position, size and in-plane rotation, so that only articulation is left.

    Args:
        points: [..., K, d].
        reference: [K, d] unit shape to rotate to; None takes the batch's own mean shape.
        sync: the batch is that of all processes.
    Returns: [..., K * d].
    """
    shapes = unit_shapes(points)
    reference = mean_shape(shapes.detach(), sync=sync) if reference is None else reference
    return rotated_to(shapes, reference).flatten(-2)


def articulation_variance(
    points: Tensor, min_std: float, covariance_weight: float, *, sync: bool = False
) -> Tensor:
    """VICReg-like hinge on canonical shapes: each coordinate must vary over the batch, none twice.

    Args:
        points: [M, K, d].
        min_std: standard deviation required of every coordinate.
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


def aligned_shapes(
    points: Tensor,
    batch: PretrainBatch,
    embed: str = "shape",
    *,
    invert_scale: bool = True,
    reference: Tensor | None = None,
) -> Tensor:
    """Each view's points in the source crop, without their position, as one unit vector.

    Args:
        points: [B, G, K, d] in their own view's ndc.
        batch: the views' geometry.
        embed: "shape" keeps orientation (size goes with the vector's length); "canonical" rotates
            all shapes to a common one, which takes that shortcut from a contrast.
        invert_scale: as in `aligned_regression`.
        reference: [K, d] shape that "canonical" rotates to; None takes the mean of these points.
    Returns: [B, G, K * d] of unit length (0 for points at one location).
    """
    in_source = _in_source(points, batch, invert_scale)
    if embed == "canonical":
        return F.normalize(canonical_shapes(in_source, reference), dim=-1)
    shape = in_source - in_source.mean(dim=-2, keepdim=True)
    return F.normalize(shape.flatten(-2), dim=-1)


def _in_source(points: Tensor, batch: PretrainBatch, invert_scale: bool) -> Tensor:
    return to_source(
        points.float(),
        batch.source_from_view.float(),
        batch.displacement_ndc,
        with_scale=invert_scale,
    )


def aligned_nce(
    points: Tensor,
    target_points: Tensor,
    batch: PretrainBatch,
    *,
    temp: float,
    embed: str = "shape",
    invert_scale: bool = True,
    sync: bool = False,
) -> Tensor:
    """NT-Xent on point sets: another view of a sample against the other samples in that view.

    Each set loses the batch's mean shape besides its own mean: the common template would otherwise
    dominate the cosine and leave no contrast.

    Args:
        points, target_points: [B, G, K, d] in their own view's ndc.
        batch: geometry and groups; samples of one group are no negatives of each other.
        temp: softmax temperature.
        embed: as in `aligned_shapes`.
        invert_scale: as in `aligned_regression`.
        sync: means and negatives of all processes.
    Returns: scalar; 0 for a batch of one sample.
    """
    in_source = [_in_source(p, batch, invert_scale) for p in (points, target_points)]
    if embed == "canonical":
        reference = mean_shape(unit_shapes(in_source[1].detach()), sync=sync)
        shapes = [canonical_shapes(p, reference) for p in in_source]
    else:
        shapes = [(p - p.mean(dim=-2, keepdim=True)).flatten(-2) for p in in_source]
    mine, other = (_without_template(s, sync) for s in shapes)
    return nt_xent(mine, other, temp=temp, group=batch.group, sync=sync)


def _without_template(shapes: Tensor, sync: bool) -> Tensor:
    template = shapes.detach().mean(dim=(0, 1), keepdim=True)
    return F.normalize(shapes - (mean_over_ranks(template) if sync else template), dim=-1)


def nt_xent(
    mine: Tensor,
    other: Tensor,
    *,
    temp: float,
    group: Tensor | None = None,
    both_views: bool = False,
    sync: bool = False,
) -> Tensor:
    """Contrast (NT-Xent): the same sample in another view against other samples.

    Args:
        mine, other: [B, G, E] of unit length.
        temp: softmax temperature of the cosines.
        group: [B] int64, equal numbers are no negatives of each other.
        both_views: all views of the other samples are negatives, not only the positive one.
        sync: negatives of all processes, with their gradients.
    Returns: scalar, mean over ordered pairs of different views; 0 without a second sample.
    """
    b, num_views = mine.shape[:2]
    candidates, first = gathered(other) if sync else (other, 0)  # [C, G, E]
    if len(candidates) < 2:
        return (mine.sum() + other.sum()) * 0.0
    own = torch.arange(b, device=mine.device)
    barred = torch.zeros(b, len(candidates), dtype=torch.bool, device=mine.device)
    if group is not None:
        barred = group[:, None] == (gathered(group)[0] if sync else group)
    barred[own, own + first] = True  # of the own sample only the positive view stays, see below
    total, count = mine.new_zeros(()), 0
    for u in range(num_views):
        for t in range(num_views):
            if t == u:
                continue
            views = list(range(num_views)) if both_views else [t]
            cosine = torch.einsum("be,cve->bcv", mine[:, u], candidates[:, views])
            left_out = barred[:, :, None].repeat(1, 1, len(views))
            left_out[own, own + first, views.index(t)] = False
            logits = (cosine / temp).masked_fill(left_out, -torch.inf).flatten(1)
            label = (own + first) * len(views) + views.index(t)
            total, count = total + F.cross_entropy(logits, label), count + 1
    return total / count
