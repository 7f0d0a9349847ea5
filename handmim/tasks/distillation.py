"""Self-distillation: which tokens go through the prototype heads, and what becomes their target.

The cross-entropies are in `losses.patch_distill` and `losses.class_distill`. Heads run on class
tokens and masked patches only, which gives what running them on all tokens and masking the loss
would give; tokens that share a head go through it together. Targets are centred by what earlier
steps saw; the centre moves when the step is over (DINO, iBOT).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from handmim.models.centering import Centering, Sinkhorn
from handmim.models.heads.projection import ProjectionHead
from handmim.types import ClassTargets, PatchTargets


class Pair(NamedTuple):
    """Tokens of one kind before a prototype head, or what became of them."""

    student: Tensor  # [..., D], then logits [..., P]
    teacher: Tensor  # [..., D], then [..., bottleneck] of unit length


def project(
    student_head: nn.Module,
    teacher_head: nn.Module,
    pairs: Sequence[Pair],
    *,
    freeze_prototypes: bool,
) -> list[Pair]:
    """Logits of the student and bottlenecks of the teacher, each network's head called once.

    One call costs less than several: gradients of its weights are made once, not made and added.

    Args:
        student_head, teacher_head: `ProjectionHead`s.
        pairs: tokens; kinds may differ in number and shape.
        freeze_prototypes: the student's prototypes get a gradient of 0.
    """
    head, teacher = _head(student_head), _head(teacher_head)
    logits = _together([p.student for p in pairs], lambda x: head(x, freeze_prototypes))
    with torch.no_grad():
        z = _together([p.teacher for p in pairs], teacher.embed)
    return [Pair(*parts) for parts in zip(logits, z, strict=True)]


def patch_targets(
    pair: Pair,
    teacher_head: nn.Module,
    centering: nn.Module,
    is_masked: Tensor,
    places: Tensor,
    temp: float,
    *,
    update: bool,
) -> PatchTargets:
    """Masked patches of all views: what the student guesses, what the teacher sees there.

    Args:
        pair: logits of the student [M, P]; bottlenecks of the teacher at the masked patches,
            [M, ..], or at all of them [V * N, ..] where the centre follows all.
        teacher_head: `ProjectionHead` of the bottlenecks.
        centering: `Centering` or `Sinkhorn` of the patches.
        is_masked: [V, N] bool.
        places: [M] of the masked ones in V * N.
        temp: of the targets.
        update: the centre follows this batch; all processes have to say the same.
    """
    where = places if len(pair.teacher) == is_masked.numel() else None
    probs = _targets(teacher_head, centering, pair.teacher, temp, where, update=update)
    per_view = is_masked.sum(dim=1, keepdim=True).clamp(min=1)
    weight = (1.0 / per_view.float()).expand_as(is_masked).flatten()[places]
    return PatchTargets(pair.student, probs, weight, len(is_masked))


def class_targets(
    pair: Pair, teacher_head: nn.Module, centering: nn.Module, temp: float, *, update: bool
) -> ClassTargets:
    """Class tokens of all views, and of the student's local crops.

    Args:
        pair: logits of the student [B, G + L, P], the G views first; bottlenecks of the teacher
            [B, G, ..].
        teacher_head, centering, temp, update: as in `patch_targets`.
    """
    z = pair.teacher
    probs = _targets(teacher_head, centering, z.flatten(0, 1), temp, None, update=update)
    return ClassTargets(pair.student, probs.unflatten(0, z.shape[:2]))


@torch.no_grad()
def _targets(
    teacher_head: nn.Module,
    centering: nn.Module,
    z: Tensor,
    temp: float,
    where: Tensor | None,
    *,
    update: bool,
) -> Tensor:
    """Probabilities of the chosen rows of z [n, bottleneck] (None = all), by the centre as it was;
    all rows count for the next one."""
    head, normaliser = _head(teacher_head), _normaliser(centering)
    probs = normaliser(head.logits(z if where is None else z[where]), temp)
    if update:
        normaliser.follow(head.logits(z.mean(dim=0)), len(z))
    return probs


def _together(parts: Sequence[Tensor], call: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Call once on the rows of all parts [..., D]: [..., out] of each."""
    if len(parts) == 1:
        return [call(parts[0])]
    sizes = [part.shape[:-1] for part in parts]
    rows = call(torch.cat([part.flatten(0, -2) for part in parts]))
    split = rows.split([size.numel() for size in sizes])
    return [part.unflatten(0, size) for part, size in zip(split, sizes, strict=True)]


# Module dictionaries forget what is in them.
def _head(module: nn.Module) -> ProjectionHead:
    if not isinstance(module, ProjectionHead):
        raise TypeError(
            f"distillation wants a ProjectionHead, got {type(module).__name__} (task.heads)"
        )
    return module


def _normaliser(module: nn.Module) -> Centering | Sinkhorn:
    if not isinstance(module, Centering | Sinkhorn):
        raise TypeError(
            f"targets are made by Centering or Sinkhorn, got {type(module).__name__} "
            "(task.centering)"
        )
    return module
