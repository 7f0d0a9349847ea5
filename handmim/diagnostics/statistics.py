"""Statistics that show collapse, of batches and of whole pretraining tasks: spread, agreement of
views, entropy, rank, gradients."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from handmim.objectives.base import StepContext, Targets, call, entropy_nats
from handmim.objectives.keypoints import keypoint_diagnostics
from handmim.types import PretrainBatch, StepInfo


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


TargetSums = tuple[int, Tensor, float, float | None]


def _target_sums(found: Targets) -> TargetSums:
    """Number, sum, entropies and, where row by row, the student's divergences of some targets."""
    probs, kl = found.teacher_probs, None
    if found.student_logits is not None:
        each = kl_nats(probs, found.student_logits.detach(), found.student_temp)
        kl = float(each.double().sum())
    return len(probs), probs.double().sum(dim=0), float(entropy_nats(probs).sum()), kl


def _target_metrics(parts: Sequence[TargetSums]) -> dict[str, float]:
    """Entropies as shares of log P, the share of prototypes in use, and divergences.

    kl_nats, kl_share (of log P): mean divergence of the student from its targets.
    constant_kl_nats: that of the best constant prediction, which is the mean target; near 0 all
    targets are alike and distillation has nothing to teach. kl_of_constant: the ratio. At 0 the
    student predicts every target, at 1 no more than a constant does, above 1 (as a fresh student)
    even less.
    """
    num = sum(part[0] for part in parts)
    if not num:
        return {}
    probs = torch.stack([part[1] for part in parts]).sum(dim=0) / num
    top = math.log(len(probs))
    of_mean, of_each = float(entropy_nats(probs)), sum(part[2] for part in parts) / num
    metrics = {
        "entropy_of_mean": of_mean / top,
        "entropy_of_each": of_each / top,
        "used": math.exp(of_mean) / len(probs),
    }
    if divergences := [part[3] for part in parts if part[3] is not None]:
        kl, constant_kl = sum(divergences) / num, of_mean - of_each
        metrics |= {
            "kl_nats": kl,
            "kl_share": kl / top,
            "constant_kl_nats": constant_kl,
            "kl_of_constant": kl / max(constant_kl, 1e-9),
        }
    return metrics


def _gradient_metrics(
    task: Any, ctx: StepContext, predictions: Mapping[str, Any]
) -> dict[str, float]:
    """Norm of every weighted loss's gradient by the student's tokens, its share of their sum and,
    where there are others, its ratio to the largest of them. A weight of 0 leaves a loss out."""
    ends = [ctx.tokens.cls, ctx.tokens.patches, *ctx.tokens.taps]
    norms = {}
    for name, objective in task.each.items():
        weight = task.weights[name](*ctx.info)
        if not weight:
            continue
        value = weight * call(name, objective.loss, ctx, predictions[name])
        grads: tuple[Tensor | None, ...] = ()
        if value.requires_grad:
            grads = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
        norms[name] = sum(float(g.double().square().sum()) for g in grads if g is not None) ** 0.5
    metrics: dict[str, float] = {}
    total = sum(norms.values())
    for name, norm in norms.items():
        metrics[f"gradient/{name}/norm"] = norm
        metrics[f"gradient/{name}/share"] = norm / max(total, 1e-30)
        if others := [other for key, other in norms.items() if key != name]:
            metrics[f"gradient/{name}/ratio"] = norm / max(*others, 1e-30)
    return metrics


def measure(
    task: Any, batch: PretrainBatch, info: StepInfo, *, batch_size: int, seed: int
) -> dict[str, float]:
    """All diagnostics of the parts that a pretraining task in evaluation mode has; nothing of it
    changes.

    targets/.., class_targets/.., keypoint_targets/..: prototype targets, see `_target_metrics`;
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
    sums: dict[str, list[TargetSums]] = defaultdict(list)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(batch.views), batch_size):
            part = batch.part(start, start + batch_size)
            with torch.set_grad_enabled(start == 0):
                ctx, predictions = task.predict(part, info)
                if start == 0:
                    metrics |= _gradient_metrics(task, ctx, predictions)
            tokens.append(ctx.tokens.cls.detach().unflatten(0, ctx.shape)[:, 0])
            if "keypoints" in task.reads:
                points.append(ctx.keypoints.detach())
            for name, objective in task.each.items():
                for prefix, found in objective.targets(predictions[name]).items():
                    sums[prefix].append(_target_sums(found))
    cls = torch.cat(tokens).float()
    length = cls.square().mean().sqrt().clamp(min=1e-12)
    deviation = (cls - cls.mean(dim=0)).square().mean().sqrt()
    metrics["features/rank"] = float(effective_rank(cls))
    metrics["features/std_share"] = float(deviation / length)
    for prefix, parts in sums.items():
        metrics |= {f"{prefix}/{key}": value for key, value in _target_metrics(parts).items()}
    if points:
        of_points = keypoint_diagnostics(torch.cat(points), batch)
        metrics |= {name: float(value) for name, value in of_points.items()}
    return metrics
