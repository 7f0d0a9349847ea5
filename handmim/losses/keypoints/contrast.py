"""Telling samples apart by the shape of their aligned points."""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.geometry.warp import to_source
from handmim.losses.keypoints.regularisers import canonical_shapes, mean_shape, unit_shapes
from handmim.types import PretrainBatch
from handmim.utils.ranks import gathered, mean_over_ranks

EMBEDS = ("shape", "canonical")


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
        embed: "shape" keeps orientation (size goes with the vector's length); "canonical" turns all
            shapes to a common one, which takes that shortcut from a contrast.
        invert_scale: as in `aligned_regression`.
        reference: [K, d] shape that "canonical" turns to; None takes the mean of these points.
    Returns: [B, G, K * d] of unit length (0 for points on one spot).
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
    fill the cosine and leave no contrast.

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
    """Each embedding must find the same sample in another view.

    Args:
        mine, other: [B, G, E] of unit length.
        temp: softmax temperature of the cosines.
        group: [B] int64, equal numbers are no negatives of each other.
        both_views: all views of the other samples are negatives, not only the sought one.
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
    barred[own, own + first] = True  # of the own sample only the sought view stays, see below
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
