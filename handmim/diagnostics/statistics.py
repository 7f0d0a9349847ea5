"""Statistics that show collapse, of batches and of whole pretraining tasks: spread, agreement of
views, entropy, rank, gradients."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.geometry.crop import to_source
from handmim.objectives.base import Objective, StepContext, call
from handmim.objectives.point_sets import canonical_shapes
from handmim.types import PretrainBatch, StepInfo

ENTROPY_ROWS = 64  # logarithms of all targets of a large batch would cost a percent of a step


def entropy_nats(probs: Tensor) -> Tensor:
    """Shannon entropy over the last axis: [..., P] -> [...]."""
    p = probs.float()
    return -p.clamp(min=1e-12).log_().mul_(p).sum(dim=-1)


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of centred features [n, D], from 1 (collapsed)
    to min(n - 1, D); nan where a feature is not finite (Roy & Vetterli 2007, EUSIPCO)."""
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
    """Spread and agreement of pseudo-keypoints [B, G, K, d] of each view, as keypoints/...:

    spread_ndc: deviation within a sample; 0 when all points coincide.
    view_std_ndc: deviation over the batch in the view; 0 for a constant template in the view.
    source_std_ndc: `agreed_deviation` of the first two views over the batch in the source crop; 0
        for a template that is constant there, and for points that follow nothing.
    articulation: the same of shapes without position, size and orientation, as a share of the
        shape's size; 0 for a rigid template, wherever it is and however noisy.
    disagreement_ndc: distance of two views' points in the source crop.
    retrieval: share of samples whose other view has the nearest mean-free shape in the batch.
    cosine: mean over pairs of samples between mean-free shapes; near 1 when a common template
        dominates them.
    """
    points = points_ndc.float()
    in_source = to_source(points, batch.source_from_view.float(), batch.displacement_ndc)
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


class MeasuredTask(Protocol):
    """A pretraining task as diagnostics require it."""

    reads: frozenset[str]

    @property
    def each(self) -> Mapping[str, Objective]:
        """Objectives by name."""
        ...

    def predict(
        self, batch: PretrainBatch, info: StepInfo
    ) -> tuple[StepContext, Mapping[str, Any]]:
        """The encoded batch, and the predictions of every objective by name."""
        ...


class _TargetSums:
    """Entropies of targets that come in batches, and the student's divergence from them."""

    def __init__(self) -> None:
        self.probs: Tensor | float = 0.0
        self.entropy, self.num = 0.0, 0
        self.kl: float | None = None

    def add(self, probs: Tensor, logits: Tensor | None, temp: float) -> None:
        """[n, P] more targets, and the student's predictions of them."""
        self.probs = self.probs + probs.double().sum(dim=0)
        self.entropy += float(entropy_nats(probs).sum())
        self.num += len(probs)
        if logits is not None:
            kl = kl_nats(probs, logits.detach(), temp)
            self.kl = (self.kl or 0.0) + float(kl.double().sum())

    def metrics(self, prefix: str) -> dict[str, float]:
        """Entropies as shares of log P, the share of prototypes in use, and divergences.

        kl_nats, kl_share (of log P): mean divergence of the student from its targets.
        constant_kl_nats: that of the best constant prediction, which is the mean target; near 0 all
        targets are alike and distillation has nothing to teach. kl_of_constant: the ratio. At 0 the
        student predicts every target, at 1 no more than a constant does, above 1 (as a fresh
        student) even less.
        """
        if not isinstance(self.probs, Tensor) or not self.num:
            return {}
        top = math.log(len(self.probs))
        of_mean = float(entropy_nats(self.probs / self.num))
        of_each = self.entropy / self.num
        metrics = {
            "entropy_of_mean": of_mean / top,
            "entropy_of_each": of_each / top,
            "used": math.exp(of_mean) / len(self.probs),
        }
        if self.kl is not None:
            kl, constant_kl = self.kl / self.num, of_mean - of_each
            metrics |= {
                "kl_nats": kl,
                "kl_share": kl / top,
                "constant_kl_nats": constant_kl,
                "kl_of_constant": kl / max(constant_kl, 1e-9),
            }
        return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _gradient_norms(
    objectives: Mapping[str, Objective], ctx: StepContext, predictions: Mapping[str, Any]
) -> dict[str, float]:
    """Norm of every weighted loss's gradient by the student's tokens; objectives whose weight is 0
    now are left out."""
    ends = [ctx.tokens.cls, ctx.tokens.patches, *ctx.tokens.taps]
    norms = {}
    for name, objective in objectives.items():
        weight = objective.weight(*ctx.info)
        if not weight:
            continue
        value = weight * call(name, objective.loss, ctx, predictions[name])
        grads: tuple[Tensor | None, ...] = ()
        if value.requires_grad:
            grads = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
        norms[name] = sum(float(g.double().square().sum()) for g in grads if g is not None) ** 0.5
    return norms


def _gradient_metrics(norms: Mapping[str, float]) -> dict[str, float]:
    """Norm of each term, its share of the sum and, where there are others, its ratio to the largest
    of them."""
    metrics: dict[str, float] = {}
    total = sum(norms.values())
    for name, norm in norms.items():
        others = [other for key, other in norms.items() if key != name]
        metrics[f"gradient/{name}/norm"] = norm
        metrics[f"gradient/{name}/share"] = norm / max(total, 1e-30)
        if others:
            metrics[f"gradient/{name}/ratio"] = norm / max(*others, 1e-30)
    return metrics


def measure(
    task: MeasuredTask, batch: PretrainBatch, info: StepInfo, *, batch_size: int, seed: int
) -> dict[str, float]:
    """All diagnostics of the parts that a task in evaluation mode has; nothing of it changes.

    targets/.., class_targets/.., keypoint_targets/..: prototype targets, see `_TargetSums.metrics`;
    features/..: the student's class tokens in the first view, their rank, and deviation over crops
    as a share of their length; keypoints/..: see `keypoint_diagnostics`; gradient/<term>/..: each
    loss term where the student's backbone ends (of whole views, not of local crops).

    Args:
        batch_size: crops at a time; gradients are measured on the first of these.
        seed: of random numbers that the task draws.
    """
    tokens: list[Tensor] = []
    points: list[Tensor] = []
    metrics: dict[str, float] = {}
    device = batch.views.device
    sums: dict[str, _TargetSums] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(batch.views), batch_size):
            part = batch.part(start, start + batch_size)
            with torch.set_grad_enabled(start == 0):
                ctx, predictions = task.predict(part, info)
                if start == 0:
                    metrics |= _gradient_metrics(_gradient_norms(task.each, ctx, predictions))
            tokens.append(ctx.tokens.cls.detach().unflatten(0, ctx.shape)[:, 0])
            if "keypoints" in task.reads:
                points.append(ctx.keypoints.detach())
            for name, objective in task.each.items():
                for prefix, found in objective.targets(predictions[name]).items():
                    of_prefix = sums.setdefault(prefix, _TargetSums())
                    of_prefix.add(found.teacher_probs, found.student_logits, found.student_temp)
    cls = torch.cat(tokens).float()
    length = cls.square().mean().sqrt().clamp(min=1e-12)
    deviation = (cls - cls.mean(dim=0)).square().mean().sqrt()
    metrics |= {
        "features/rank": float(effective_rank(cls)),
        "features/std_share": float(deviation / length),
    }
    for prefix, of_prefix in sums.items():
        metrics |= of_prefix.metrics(prefix)
    if points:
        of_points = keypoint_diagnostics(torch.cat(points), batch)
        metrics |= {name: float(value) for name, value in of_points.items()}
    return metrics
