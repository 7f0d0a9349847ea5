"""Figures that tell whether pretraining is alive, measured on given views without changing
anything."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handmim.losses import patch_distill
from handmim.tasks.monitors import effective_rank, entropy_nats, keypoint_monitors, kl_nats
from handmim.tasks.pretrain import HandMimTask
from handmim.types import PretrainBatch, PretrainOutputs, StepInfo

# Fields of the outputs with prototype targets, and what their figures are called.
TARGETS = {
    "patches": "targets",
    "classes": "class_targets",
    "keypoint_classes": "keypoint_targets",
}


class _Entropies:
    """Entropies of targets that come in parts, as shares of log P, and how far the student is from
    them."""

    def __init__(self) -> None:
        self.probs: Tensor | None = None
        self.each, self.num = 0.0, 0
        self.kl: float | None = None

    def add(self, probs: Tensor) -> None:
        """[n, P] more."""
        total = probs.double().sum(dim=0)
        self.probs = total if self.probs is None else self.probs + total
        self.each += float(entropy_nats(probs).sum())
        self.num += len(probs)

    def add_kl(self, kl: Tensor) -> None:
        """[n] divergences from the same targets."""
        self.kl = (self.kl or 0.0) + float(kl.double().sum())

    def figures(self, prefix: str) -> dict[str, float]:
        """entropy_of_mean, entropy_of_each, and used: prototypes that count, as a share of P;
        where divergences were added, those of `_kl_figures`."""
        if self.probs is None or not self.num:
            return {}
        top = float(np.log(len(self.probs)))
        of_mean = float(entropy_nats(self.probs / self.num))
        of_each = self.each / self.num
        figures = {
            f"{prefix}/entropy_of_mean": of_mean / top,
            f"{prefix}/entropy_of_each": of_each / top,
            f"{prefix}/used": float(np.exp(of_mean)) / len(self.probs),
        }
        if self.kl is not None:
            figures |= _kl_figures(prefix, self.kl / self.num, of_mean - of_each, top)
        return figures


def _kl_figures(prefix: str, kl: float, constant_kl: float, top: float) -> dict[str, float]:
    """What distillation has taught, without the targets' own entropy.

    kl_nats, kl_share (of log P): mean divergence of the student from its targets. constant_kl_nats:
    that of the best constant answer, the mean target, which is all that there is to tell: near 0
    the targets are alike, and distillation has nothing to teach. kl_of_constant: the ratio. 0 the
    student tells every target; 1 it tells no more than a constant does, distillation idles; above 1
    it is worse than that, as a fresh student is.
    """
    return {
        f"{prefix}/kl_nats": kl,
        f"{prefix}/kl_share": kl / top,
        f"{prefix}/constant_kl_nats": constant_kl,
        f"{prefix}/kl_of_constant": kl / max(constant_kl, 1e-9),
    }


def term_gradients(
    task: HandMimTask, out: PretrainOutputs, tokens: Sequence[Tensor], batch: Any, info: StepInfo
) -> dict[str, float]:
    """Norm of every weighted loss term's gradient where the backbone ends.

    Args:
        task: with the terms and weights; those that weigh nothing now are left out.
        out: outputs of `batch` with their graph.
        tokens: the student's tokens that `out` was made from.
        batch, info: what the terms look at besides.
    """
    norms = {}
    for name, term in task.losses.terms.items():
        weight = task.losses.weights[name](info.step, info.total_steps)
        if not weight:
            continue
        value = weight * term(out, batch)
        if not value.requires_grad:
            norms[name] = 0.0
            continue
        grads = torch.autograd.grad(value, tokens, retain_graph=True, allow_unused=True)
        squares = [float(g.double().square().sum()) for g in grads if g is not None]
        norms[name] = sum(squares) ** 0.5
    return norms


def _feature_figures(cls: Tensor) -> dict[str, float]:
    """Class tokens [n, D]: effective rank, and deviation over crops as a share of their length."""
    deviation = (cls - cls.mean(dim=0)).square().mean().sqrt()
    length = cls.square().mean().sqrt()
    return {
        "features/rank": float(effective_rank(cls)),
        "features/std_share": float(deviation / length.clamp(min=1e-12)),
    }


def _gradient_figures(norms: Mapping[str, float]) -> dict[str, float]:
    """For each term its norm, its share of the sum and, where there are others, its ratio to the
    largest of them."""
    figures: dict[str, float] = {}
    total = sum(norms.values())
    for name, norm in norms.items():
        others = [other for key, other in norms.items() if key != name]
        figures[f"gradient/{name}/norm"] = norm
        figures[f"gradient/{name}/share"] = norm / max(total, 1e-30)
        if others:
            figures[f"gradient/{name}/ratio"] = norm / max(*others, 1e-30)
    return figures


def measure(
    task: HandMimTask, batch: PretrainBatch, info: StepInfo, *, batch_size: int, seed: int
) -> dict[str, float]:
    """All figures; those of parts that the task does not have are absent.

    targets/.., class_targets/.., keypoint_targets/.. entropies of prototype targets, and for masked
    patches the student's divergence from them (`_kl_figures` says how to read it); features/..
    of the student's class tokens in the first view; keypoints/.. as `monitors.keypoint_monitors`;
    gradient/<term>/.. of every loss term where the student's backbone ends (of whole views, not of
    local crops).

    Args:
        task: in evaluation mode.
        batch: views to look at.
        info: where training stands.
        batch_size: crops at a time; gradients are measured on the first of these.
        seed: of whatever the task draws.
    """
    cls: list[Tensor] = []
    points: list[Tensor] = []
    figures: dict[str, float] = {}
    device = batch.views.device
    targets = {name: _Entropies() for name in TARGETS}
    patch_term = next(
        (t for t in task.losses.terms.values() if isinstance(t, patch_distill.Term)), None
    )
    # Whatever draws from the global generator draws the same at every check.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(batch.views), batch_size):
            part = batch.part(start, start + batch_size)
            with torch.set_grad_enabled(start == 0):
                out, tokens = task.outputs(part, info)
                if start == 0:
                    ends = [tokens.cls, tokens.patches, *tokens.taps]
                    norms = term_gradients(task, out, ends, part, info)
                    figures |= _gradient_figures(norms)
            cls.append(tokens.cls.detach().unflatten(0, part.views.shape[:2])[:, 0])
            if out.keypoints_ndc is not None:
                points.append(out.keypoints_ndc.detach())
            for name, entropies in targets.items():
                found = getattr(out, name)
                if found is not None:
                    entropies.add(found.teacher_probs.flatten(0, -2))
            if out.patches is not None and patch_term is not None:
                told = out.patches.teacher_probs, out.patches.student_logits.detach()
                targets["patches"].add_kl(kl_nats(*told, patch_term.student_temp))
    figures |= _feature_figures(torch.cat(cls).float())
    for name, entropies in targets.items():
        figures |= entropies.figures(TARGETS[name])
    if points:
        monitors = keypoint_monitors(torch.cat(points), batch)
        figures |= {name: float(value) for name, value in monitors.items()}
    return figures
