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
from handmim.utils.ranks import count_over_ranks, gathered, mean_over_ranks


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


def _std(points: Tensor) -> Tensor:
    """[..., K, d] to [..., d], standard deviation over points."""
    return (points.var(dim=-2, correction=0) + 1e-8).sqrt()


def point_spread(points: Tensor) -> Tensor:
    """Mean over samples and axes of the standard deviation over points: [..., K, d] -> scalar."""
    return _std(points).mean()


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
        if momentum is not None and not detach:
            raise ValueError(
                "detach_scale=false requires the batch's own spread: a moving average has no "
                f"gradient (scale_momentum={momentum})"
            )
        self.floor_ndc, self.detach, self.momentum = floor_ndc, detach, momentum
        self.register_buffer("average", torch.zeros(()), persistent=momentum is not None)

    def forward(self, target_points: Tensor) -> Tensor:
        """Scalar from [..., K, d]; the average moves in training mode only."""
        spread = point_spread(target_points)
        spread = spread.detach() if self.detach else spread
        if self.training:
            spread = mean_over_ranks(spread)
        if self.momentum is not None:
            if self.training:
                is_first = self.average == 0
                self.average.lerp_(spread, torch.where(is_first, 1.0, 1.0 - self.momentum))
            # Before the first training batch there is no average: this batch's spread.
            spread = torch.where(self.average > 0, self.average, spread).clone()
        return spread.clamp(min=self.floor_ndc)


def aligned_regression(
    points: Tensor,
    target_points: Tensor,
    batch: PretrainBatch,
    *,
    scale: Tensor | float,
    kind: str = "smooth_l1",
    frame: str = "view",
    pairs: str = "cross",
    beta_ndc: float = 0.05,
    limit_ndc: float | None = 1.5,
    invert_scale: bool = True,
    sync: bool = False,
) -> Tensor:
    """Distance of points from the carried points of another view, mean over ordered pairs of views
    and over all coordinates that count, with `sync` those of all processes.

    Args:
        points, target_points: of the network that learns, and of the one that is matched.
        batch: the views' geometry.
        scale: spread that divides the distance, twice for "l2"; unused by "cosine".
        kind: "smooth_l1" | "l2" (squares) | "cosine" (1 - cosine of all coordinates of a sample).
        frame: compare in the "view" of `points`, or carry both to the "source" crop.
        pairs: of different views, or also a view with itself ("cross+same").
        beta_ndc: where smooth L1 turns linear.
        limit_ndc: a point that another view predicts beyond this in the view of `points` does not
            count, whatever the frame; None counts all.
        invert_scale: False leaves the views' sizes in, as PeCLR does.
        sync: see above.
    """
    source = in_source(target_points, batch, with_scale=invert_scale)
    mine = points if frame == "view" else in_source(points, batch, with_scale=invert_scale)
    costs = []
    for shift in range(0 if pairs == "cross+same" else 1, points.shape[1]):
        other = source.roll(-shift, dims=1)
        in_view = target_points
        if shift and (frame == "view" or limit_ndc is not None):
            in_view = in_views(other, batch, with_scale=invert_scale)
        counts = torch.ones_like(other[..., :1], dtype=torch.bool)
        if limit_ndc is not None:
            counts = (in_view.detach()[..., :2].abs() <= limit_ndc).all(dim=-1, keepdim=True)
        other = in_view if frame == "view" else other
        if kind == "cosine":
            a, b = (torch.where(counts, x, 0.0).flatten(-2) for x in (mine, other))
            distance = 1.0 - F.cosine_similarity(a, b, dim=-1, eps=1e-6)
            is_counted = counts.any(dim=-2).squeeze(-1)
            num = count_over_ranks(is_counted.sum(), sync=sync)
            costs.append((distance * is_counted).sum() / num)
            continue
        if kind == "smooth_l1":
            error = F.smooth_l1_loss(mine, other, beta=beta_ndc, reduction="none") / scale
        else:
            error = (mine - other).square() / scale**2
        num = count_over_ranks(error.shape[-1] * counts.sum(), sync=sync)
        costs.append(torch.where(counts, error, 0.0).sum() / num)
    return torch.stack(costs).mean()


def spread_hinge(points: Tensor, min_std: float) -> Tensor:
    """Mean over samples and axes of relu(min_std - std over points)^2: [..., K, d] -> scalar."""
    return F.relu(min_std - _std(points)).square().mean()


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


def _embedded(source: Tensor, embed: str, reference: Tensor | None = None) -> Tensor:
    if embed == "canonical":
        return canonical_shapes(source, reference)
    return (source - source.mean(dim=-2, keepdim=True)).flatten(-2)


def aligned_shapes(
    points: Tensor, batch: PretrainBatch, embed: str = "shape", *, invert_scale: bool = True
) -> Tensor:
    """Each view's points in the source crop, without their position, as one unit vector [B, G,
    K * d], 0 for points at one location.

    "shape" keeps orientation; "canonical" rotates all shapes to their mean, which takes that
    shortcut from a contrast.
    """
    source = in_source(points, batch, with_scale=invert_scale)
    return F.normalize(_embedded(source, embed), dim=-1)


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
    """`nt_xent` of aligned shapes: another view of a sample against the other samples in that view.

    Each set loses the batch's mean shape besides its own mean: the common template would otherwise
    dominate the cosine and leave no contrast. Arguments as in `aligned_shapes` and `nt_xent`.
    """
    mine, other = (in_source(p, batch, with_scale=invert_scale) for p in (points, target_points))
    reference = None
    if embed == "canonical":
        reference = mean_shape(unit_shapes(other.detach()), sync=sync)
    sets = []
    for shapes in (_embedded(mine, embed, reference), _embedded(other, embed, reference)):
        template = shapes.detach().mean(dim=(0, 1), keepdim=True)
        template = mean_over_ranks(template) if sync else template
        sets.append(F.normalize(shapes - template, dim=-1))
    return nt_xent(*sets, temp=temp, group=batch.group, sync=sync)


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
