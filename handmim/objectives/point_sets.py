"""Losses on sets of points: agreement of views, hinges against collapse, contrast.

The hinges act against the collapses that regression allows: all points at one location, one
template, one rigid shape. Points are [B, G, K, d] in their own view's ndc unless said otherwise.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.geometry.crop import from_source, scale_of, to_source
from handmim.types import PretrainBatch
from handmim.utils.arguments import below_one
from handmim.utils.ranks import gathered, mean_over_ranks


def in_source(points: Tensor, batch: PretrainBatch, *, with_scale: bool = True) -> Tensor:
    """Points of views in the source crop; without scale the views' sizes stay in."""
    maps = batch.source_from_view.float(), batch.displacement_ndc
    return to_source(points.float(), *maps, with_scale=with_scale)


def in_views(points: Tensor, batch: PretrainBatch, *, with_scale: bool = True) -> Tensor:
    """The inverse of `in_source`."""
    maps = batch.source_from_view.float(), batch.displacement_ndc
    return from_source(points, *maps, with_scale=with_scale)


def points_of_next_view(points: Tensor, batch: PretrainBatch) -> Tensor:
    """The next view's points, carried to each view by the known maps."""
    return in_views(in_source(points, batch).roll(-1, dims=1), batch)


def linear_part(source_from_view: Tensor, *, with_scale: bool) -> Tensor:
    """[..., 2, 3] to [..., 2, 2]: rotation, stretch and flip of a map, without scale divided by
    sqrt|det|."""
    linear = source_from_view[..., :2].float()
    return linear if with_scale else linear / scale_of(linear)[..., None, None]


def carried(linear: Tensor, vectors: Tensor) -> Tensor:
    """[..., 2, 2] applied to [..., P, 2] vectors, in the precision of its inputs."""
    return (linear.unsqueeze(-3) * vectors.unsqueeze(-2)).sum(dim=-1)


def point_std(points: Tensor) -> Tensor:
    """[..., K, d] to [..., d], standard deviation over points."""
    return (points.var(dim=-2, correction=0) + 1e-8).sqrt()


class RunningScale(nn.Module):
    """The spread that divides the regression, which is then blind to shrinking.

    `detach` stops its gradient. A momentum is that of a moving average over batches of all
    processes, 0 before the first; None takes the batch's own spread.
    """

    average: Tensor

    def __init__(
        self, *, floor_ndc: float = 0.05, detach: bool = True, momentum: float | None = None
    ) -> None:
        super().__init__()
        if momentum is not None:
            below_one(scale_momentum=momentum)
            if not detach:
                text = f"scale_momentum=null: a moving average ({momentum}) has no gradient"
                raise ValueError(f"detach_scale=false requires {text}")
        self.floor_ndc, self.detach, self.momentum = floor_ndc, detach, momentum
        self.register_buffer("average", torch.zeros(()), persistent=momentum is not None)

    def forward(self, target_points: Tensor) -> Tensor:
        """Scalar from [..., K, d]; the average moves in training mode only."""
        spread = point_std(target_points).mean()
        spread = spread.detach() if self.detach else spread
        spread = mean_over_ranks(spread) if self.training else spread
        if self.momentum is not None:
            if self.training:
                is_first = self.average == 0
                self.average.lerp_(spread, torch.where(is_first, 1.0, 1.0 - self.momentum))
            # Before the first training batch there is no average: this batch's spread.
            spread = torch.where(self.average > 0, self.average, spread).clone()
        return spread.clamp(min=self.floor_ndc)


def repulsion(points: Tensor, min_distance: float) -> Tensor:
    """Mean over pairs of a sample's points of relu(min_distance - |k_i - k_j|)^2: scalar."""
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
def mean_shape(shapes: Tensor, *, sync: bool = False) -> Tensor:
    """Mean [K, d] of unit shapes [..., K, d] after rotating them to a common orientation, twice.

    Each batch starts from the same circle of points, so that the mean's orientation is not random.
    """
    k, d = shapes.shape[-2:]
    angle = torch.arange(k, device=shapes.device) * (2.0 * math.pi / k)
    reference = shapes.new_zeros(k, d)
    reference[:, 0], reference[:, 1] = angle.cos(), angle.sin()
    for _ in range(2):
        reference = rotated_to(shapes, reference).flatten(0, -3).mean(dim=0)
        reference = mean_over_ranks(reference) if sync else reference
    return reference


def canonical_shapes(
    points: Tensor, reference: Tensor | None = None, *, sync: bool = False
) -> Tensor:
    """Remove position, size and in-plane rotation of [..., K, d]: [..., K * d], articulation alone.

    Shapes are rotated to a reference [K, d], or to their mean, with `sync` that of all processes.
    """
    shapes = unit_shapes(points)
    reference = mean_shape(shapes.detach(), sync=sync) if reference is None else reference
    return rotated_to(shapes, reference).flatten(-2)


def articulation_variance(
    points: Tensor, min_std: float = 0.15, covariance_weight: float = 0.01, *, sync: bool = False
) -> Tensor:
    """VICReg-like hinge on canonical shapes of [M, K, d]: each coordinate must vary over the batch,
    none twice. Scalar; 0 for fewer than two samples.

    Coordinates require a deviation of `min_std`; squared off-diagonal covariances are summed and
    divided by the number of coordinates. `sync` takes the samples of all processes.
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


def nt_xent(
    mine: Tensor,
    other: Tensor,
    *,
    temp: float,
    group: Tensor | None = None,
    both_views: bool = False,
    sync: bool = False,
) -> Tensor:
    """Contrast (NT-Xent): the same sample in another view against other samples, mean over ordered
    pairs of different views; 0 without a second sample.

    Args:
        mine, other: [B, G, E] of unit length.
        temp: softmax temperature of the cosines.
        group: [B] int64, equal numbers are no negatives of each other.
        both_views: all views of the other samples are negatives, not only the positive one.
        sync: negatives of all processes, with their gradients.
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
    for u, t in itertools.permutations(range(num_views), 2):
        views = list(range(num_views)) if both_views else [t]
        cosine = torch.einsum("be,cve->bcv", mine[:, u], candidates[:, views])
        left_out = barred[:, :, None].repeat(1, 1, len(views))
        left_out[own, own + first, views.index(t)] = False
        logits = (cosine / temp).masked_fill(left_out, -torch.inf).flatten(1)
        label = (own + first) * len(views) + views.index(t)
        total, count = total + F.cross_entropy(logits, label), count + 1
    return total / count
