"""Statistics that show collapse: spread, agreement of views, entropy, rank."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.geometry.crop import to_source
from handmim.objectives.point_sets import canonical_shapes
from handmim.types import PretrainBatch

ENTROPY_ROWS = 64  # logarithms of all targets of a large batch would cost a percent of a step


def entropy_nats(probs: Tensor) -> Tensor:
    """Shannon entropy over the last axis: [..., P] -> [...]."""
    p = probs.float()
    return -p.clamp(min=1e-12).log_().mul_(p).sum(dim=-1)


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of centred features [n, D], from 1 (collapsed)
    to min(n - 1, D); nan where a feature is not finite.

    Roy & Vetterli 2007, EUSIPCO.
    """
    x = features.float() - features.float().mean(dim=0)
    if not x.isfinite().all():  # svd would only report that it does not converge
        return x.new_tensor(math.nan)
    s = torch.linalg.svdvals(x)
    return entropy_nats(s / s.sum().clamp(min=1e-12)).exp()


def kl_nats(teacher_probs: Tensor, student_logits: Tensor, student_temp: float) -> Tensor:
    """KL divergence of the student from its targets: the cross-entropy without the targets' own
    entropy, which no student can lower; [..., P] twice -> [...]."""
    p, log_q = teacher_probs.float(), (student_logits.float() / student_temp).log_softmax(dim=-1)
    return (p * (p.clamp(min=1e-12).log() - log_q)).sum(dim=-1)


def agreed_deviation(a: Tensor, b: Tensor) -> Tensor:
    """Deviation over samples of what two views agree on; [n, E] of either view -> scalar.

    It is the root of the mean covariance between the views over samples, 0 where that is negative.
    Noise of each view alone drops out but for chance: independent noise of deviation s everywhere
    gives 0 or about s (n E)^(-1/4). Equal views give their root mean square deviation.
    """
    covariance = ((a - a.mean(dim=0)) * (b - b.mean(dim=0))).mean()
    return covariance.clamp(min=0).sqrt()


@torch.no_grad()
def keypoint_diagnostics(points_ndc: Tensor, batch: PretrainBatch) -> dict[str, Tensor]:
    """Spread and agreement of pseudo-keypoints.

    Args:
        points_ndc: [B, G, K, d] in each view.
        batch: geometry of the views.
    Returns: scalars under keypoints/.
        spread_ndc: deviation within a sample; 0 when all points coincide.
        view_std_ndc: deviation over the batch in the view; 0 for a constant template in the view.
        source_std_ndc: `agreed_deviation` of the first two views over the batch in the source crop;
            0 for a template that is constant there, and for points that follow nothing.
        articulation: the same of shapes without position, size and orientation, as a share of the
            shape's size; 0 for a rigid template, wherever it is and however noisy.
        disagreement_ndc: distance of two views' points in the source crop.
        retrieval: share of samples whose other view has the nearest mean-free shape in the batch.
        cosine: mean over pairs of samples between mean-free shapes; near 1 when a common template
            dominates them.
    """
    points = points_ndc.float()
    maps = batch.source_from_view.float(), batch.displacement_ndc
    in_source = to_source(points, *maps)
    a, b = in_source[:, 0], in_source[:, 1]
    shapes = (in_source - in_source.mean(dim=2, keepdim=True)).flatten(2)
    distinct = shapes - shapes.mean(dim=(0, 1), keepdim=True)
    nearest = torch.cdist(distinct[:, 0], distinct[:, 1]).argmin(dim=1)
    same = nearest == torch.arange(len(nearest), device=nearest.device)
    unit = F.normalize(shapes[:, 0], dim=-1)
    pairs = max(len(unit) * (len(unit) - 1), 1)
    cosine = (unit.sum(dim=0).square().sum() - unit.square().sum()) / pairs
    q = canonical_shapes(in_source[:, :2])
    return {
        "keypoints/spread_ndc": points.std(dim=2, correction=0).mean(),
        "keypoints/view_std_ndc": points[:, 0].std(dim=0, correction=0).mean(),
        "keypoints/source_std_ndc": agreed_deviation(a, b),
        "keypoints/articulation": agreed_deviation(q[:, 0], q[:, 1]),
        "keypoints/disagreement_ndc": (a - b).norm(dim=-1).mean(),
        "keypoints/retrieval": same.float().mean(),
        "keypoints/cosine": cosine,
    }


@torch.no_grad()
def target_diagnostics(teacher_probs: Tensor, prefix: str = "targets") -> dict[str, Tensor]:
    """Entropies of prototype targets [M, P] as shares of log P, under a prefix.

    entropy_of_mean falls to 0 when one prototype takes all; entropy_of_each, of evenly spaced rows
    of a large batch, rises to 1 when targets become uniform.
    """
    top = math.log(teacher_probs.shape[-1])
    some = teacher_probs[:: max(1, len(teacher_probs) // ENTROPY_ROWS)]
    return {
        f"{prefix}/entropy_of_mean": entropy_nats(teacher_probs.mean(dim=0)) / top,
        f"{prefix}/entropy_of_each": entropy_nats(some).mean() / top,
    }
