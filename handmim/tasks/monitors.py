"""Numbers that tell whether pretraining is alive: spread, agreement, entropy, rank. No
gradients."""

import math

import torch
from torch import Tensor

from handmim.geometry.crop import transform_points


def entropy_nats(probs: Tensor) -> Tensor:
    """Shannon entropy over the last axis: [..., P] -> [...]."""
    p = probs.float()
    return -(p * p.clamp(min=1e-12).log()).sum(dim=-1)


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of centred features [n, D]: 1 collapsed ..
    min(n-1, D).

    Roy & Vetterli 2007, EUSIPCO.
    """
    x = features.float() - features.float().mean(dim=0)
    s = torch.linalg.svdvals(x)
    return entropy_nats(s / s.sum().clamp(min=1e-12)).exp()


@torch.no_grad()
def keypoint_monitors(points_ndc: Tensor, source_from_view: Tensor) -> dict[str, Tensor]:
    """What the pseudo-keypoints do.

    Args:
        points_ndc: [B, G, K, 2] in each view.
        source_from_view: [B, G, 2, 3].
    Returns: spread (std within a sample, ndc), disagreement |A_a k_a - A_b k_b| (source ndc),
        retrieval (share of samples whose other view has the nearest mean-free shape in the batch).
    """
    in_source = transform_points(source_from_view, points_ndc.float())
    a, b = in_source[:, 0], in_source[:, 1]
    shapes = in_source - in_source.mean(dim=2, keepdim=True)
    shapes = (shapes - shapes.mean(dim=(0, 1), keepdim=True)).flatten(2)
    nearest = torch.cdist(shapes[:, 0], shapes[:, 1]).argmin(dim=1)
    same = nearest == torch.arange(len(nearest), device=nearest.device)
    return {
        "keypoints/spread_ndc": points_ndc.float().std(dim=2, correction=0).mean(),
        "keypoints/disagreement_ndc": (a - b).norm(dim=-1).mean(),
        "keypoints/retrieval": same.float().mean(),
    }


@torch.no_grad()
def target_monitors(teacher_probs: Tensor) -> dict[str, Tensor]:
    """Entropies of the patch targets as shares of log P.

    `mean` falls to 0 when one prototype takes all; `each` rises to 1 when targets turn uniform.
    """
    top = math.log(teacher_probs.shape[-1])
    return {
        "targets/entropy_of_mean": entropy_nats(teacher_probs.mean(dim=0)) / top,
        "targets/entropy_of_each": entropy_nats(teacher_probs).mean() / top,
    }
