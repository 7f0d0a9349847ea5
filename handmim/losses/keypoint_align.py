"""Pseudo-keypoint alignment of the class token: points of two views must agree under the known map.

The paper's abstract names the module; this formulation is ours. Regression alone has three
collapses (all points on one spot, a template fixed to the picture, a rigid template locked to the
hand), so it comes with terms against each. The nearest published relative is PeCLR (Spurr et al.
2021, arXiv 2106.05953), which contrasts aligned points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.contracts import PretrainBatch, PretrainOutputs
from handmim.geometry.crop import compose, invert, transform_points

FRAMES = ("view", "source")


def point_spread(points: Tensor) -> Tensor:
    """Mean over samples and axes of the standard deviation over points: [..., K, 2] -> scalar."""
    return points.std(dim=-2, correction=0).mean()


def aligned_regression(
    points: Tensor,
    target_points: Tensor,
    source_from_view: Tensor,
    *,
    frame: str,
    beta_ndc: float,
    min_sigma: float = 0.05,
    detach_sigma: bool = True,
    limit_ndc: float = 1.5,
) -> Tensor:
    """Smooth L1 between each view's points and the other views' points carried over, per point
    spread.

    Args:
        points: [B, G, K, 2] in their own view's ndc.
        target_points: [B, G, K, 2], the same views seen by the side that is matched.
        source_from_view: [B, G, 2, 3].
        frame: compare in the "view" of `points`, or carry both to the "source" crop.
        beta_ndc: where smooth L1 turns linear.
        min_sigma: floor of the spread that divides the loss; dividing makes it blind to shrinking.
        detach_sigma: no gradient through the spread.
        limit_ndc: carried points beyond this are left out ("view" frame).
    Returns: scalar, mean over ordered pairs of different views and over all points that count.
    """
    if frame not in FRAMES:
        raise ValueError(
            f"frame must be one of {FRAMES}, got {frame!r} (configs/loss/keypoint_align.yaml)"
        )
    num_views = points.shape[1]
    total, count = points.new_zeros(()), 0
    for u in range(num_views):
        for t in range(num_views):
            if t == u:
                continue
            if frame == "view":
                u_from_t = compose(invert(source_from_view[:, u]), source_from_view[:, t])
                mine, other = points[:, u], transform_points(u_from_t, target_points[:, t])
                counts = (other.detach().abs() <= limit_ndc).all(dim=-1, keepdim=True)
            else:
                mine = transform_points(source_from_view[:, u], points[:, u])
                other = transform_points(source_from_view[:, t], target_points[:, t])
                counts = torch.ones_like(other[..., :1], dtype=torch.bool)
            error = F.smooth_l1_loss(mine, other, beta=beta_ndc, reduction="none") * counts
            total = total + error.sum() / (2 * counts.sum()).clamp(min=1)
            count += 1
    sigma = point_spread(target_points).clamp(min=min_sigma)
    return total / count / (sigma.detach() if detach_sigma else sigma)


def aligned_nce(
    points: Tensor, target_points: Tensor, source_from_view: Tensor, temp: float
) -> Tensor:
    """NT-Xent on point sets in the source frame: other views of a sample against other samples.

    Each set loses its own mean (position) and then the batch's mean shape: the common template
    would otherwise fill the cosine and leave no contrast.

    Args:
        points, target_points: [B, G, K, 2] in their own view's ndc.
        source_from_view: [B, G, 2, 3].
        temp: softmax temperature.
    Returns: scalar; 0 for a batch of one sample.
    """
    b, num_views = points.shape[:2]
    if b < 2:
        return points.sum() * 0.0

    def embed(p: Tensor) -> Tensor:
        in_source = transform_points(source_from_view, p)
        shape = (in_source - in_source.mean(dim=-2, keepdim=True)).flatten(2)  # [B, G, 2K]
        return F.normalize(shape - shape.mean(dim=(0, 1), keepdim=True).detach(), dim=-1)

    mine, other = embed(points), embed(target_points)
    labels = torch.arange(b, device=points.device)
    total, count = points.new_zeros(()), 0
    for u in range(num_views):
        for t in range(num_views):
            if t != u:
                total = total + F.cross_entropy(mine[:, u] @ other[:, t].T / temp, labels)
                count += 1
    return total / count


def spread_hinge(points: Tensor, min_std: float) -> Tensor:
    """Penalty when a sample's points bunch up: mean over samples and axes of relu(min_std -
    std_K)^2."""
    std = (points.var(dim=-2, correction=0) + 1e-8).sqrt()
    return F.relu(min_std - std).square().mean()


def repulsion(points: Tensor, min_distance: float) -> Tensor:
    """Mean over pairs of a sample's points of relu(min_distance - |k_i - k_j|)^2: [..., K, 2] ->
    scalar."""
    k = points.shape[-2]
    i, j = torch.triu_indices(k, k, offset=1, device=points.device)
    gap = ((points[..., i, :] - points[..., j, :]).square().sum(dim=-1) + 1e-12).sqrt()
    return F.relu(min_distance - gap).square().mean()


def canonical_shapes(points: Tensor) -> Tensor:
    """Remove position, size and in-plane rotation, so that only articulation is left.

    Args:
        points: [M, K, 2].
    Returns: [M, 2K]; rotation is the best fit to the (detached) mean shape.
    """
    centred = points - points.mean(dim=-2, keepdim=True)
    shape = centred / (centred.square().sum(dim=-1).mean(dim=-1) + 1e-6).sqrt()[:, None, None]
    ref = shape.mean(dim=0).detach()
    dot = (shape * ref).sum(dim=(-1, -2))
    cross = (shape[..., 0] * ref[:, 1] - shape[..., 1] * ref[:, 0]).sum(dim=-1)
    norm = (dot.square() + cross.square() + 1e-8).sqrt()
    cos, sin = (dot / norm)[:, None], (cross / norm)[:, None]
    x, y = shape[..., 0], shape[..., 1]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1).flatten(1)


def articulation_variance(points: Tensor, min_std: float, covariance_weight: float) -> Tensor:
    """VICReg-like hinge on canonical shapes: each coordinate must vary over the batch, none twice.

    Args:
        points: [M, K, 2].
        min_std: standard deviation asked of every coordinate.
        covariance_weight: weight of the mean squared off-diagonal covariance.
    Returns: scalar; 0 for fewer than two samples.
    """
    if len(points) < 2:
        return points.sum() * 0.0
    q = canonical_shapes(points)
    q = q - q.mean(dim=0)
    cov = q.T @ q / (len(q) - 1)
    std = (cov.diagonal() + 1e-8).sqrt()
    off_diagonal = cov.square().sum() - cov.diagonal().square().sum()
    return F.relu(min_std - std).square().mean() + covariance_weight * off_diagonal / len(cov)


class Term(nn.Module):
    """Regression + contrast + terms against collapse, weighted inside so that one weight switches
    the module.

    Args:
        frame: "view" or "source", where regression compares.
        beta_ndc: smooth L1 threshold.
        detach_sigma: no gradient through the spread that divides the regression.
        reg_weight, nce_weight, spread_weight, repulsion_weight, variance_weight: parts.
        nce_temp: temperature of the contrast.
        min_std_ndc, min_distance_ndc: hinges on spread within a sample and on the closest pairs.
        min_articulation_std, covariance_weight: hinge on articulation over the batch.
    """

    def __init__(
        self,
        *,
        frame: str = "view",
        beta_ndc: float = 0.05,
        detach_sigma: bool = True,
        reg_weight: float = 1.0,
        nce_weight: float = 0.5,
        nce_temp: float = 0.2,
        spread_weight: float = 0.1,
        min_std_ndc: float = 0.25,
        repulsion_weight: float = 0.1,
        min_distance_ndc: float = 0.08,
        variance_weight: float = 0.1,
        min_articulation_std: float = 0.15,
        covariance_weight: float = 0.01,
    ) -> None:
        super().__init__()
        if frame not in FRAMES:
            raise ValueError(
                f"frame must be one of {FRAMES}, got {frame!r} (configs/loss/keypoint_align.yaml)"
            )
        self.frame, self.beta_ndc, self.detach_sigma = frame, beta_ndc, detach_sigma
        self.reg_weight, self.nce_weight, self.nce_temp = reg_weight, nce_weight, nce_temp
        self.spread_weight, self.min_std_ndc = spread_weight, min_std_ndc
        self.repulsion_weight, self.min_distance_ndc = repulsion_weight, min_distance_ndc
        self.variance_weight, self.min_articulation_std = variance_weight, min_articulation_std
        self.covariance_weight = covariance_weight

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.keypoints_ndc is not None, "keypoint_align needs the keypoint head"
        assert out.target_keypoints_ndc is not None
        points, target = out.keypoints_ndc, out.target_keypoints_ndc
        total = self.reg_weight * aligned_regression(
            points,
            target,
            batch.source_from_view,
            frame=self.frame,
            beta_ndc=self.beta_ndc,
            detach_sigma=self.detach_sigma,
        )
        if self.nce_weight:
            nce = aligned_nce(points, target, batch.source_from_view, self.nce_temp)
            total = total + self.nce_weight * nce
        if self.spread_weight:
            total = total + self.spread_weight * spread_hinge(points, self.min_std_ndc)
        if self.repulsion_weight:
            total = total + self.repulsion_weight * repulsion(points, self.min_distance_ndc)
        if self.variance_weight:
            total = total + self.variance_weight * articulation_variance(
                points.flatten(0, 1), self.min_articulation_std, self.covariance_weight
            )
        return total
