"""Self-distillation: which tokens go through the prototype heads, and what becomes their target.

The cross-entropies are in `losses.patch_distill` and `losses.class_distill`. Heads run on class
tokens and masked patches only, which gives what running them on all tokens and masking the loss
would give. Targets are centred by what earlier steps saw; then the centre moves (DINO, iBOT).
"""

import torch
from torch import Tensor, nn

from handmim.contracts import ClassTargets, PatchTargets
from handmim.models.centering import Centering, Sinkhorn
from handmim.models.heads.projection import ProjectionHead


def patch_targets(
    student_head: nn.Module,
    teacher_head: nn.Module,
    centering: nn.Module,
    student_patches: Tensor,
    teacher_patches: Tensor,
    is_masked: Tensor,
    temp: float,
    *,
    update: bool,
    freeze_prototypes: bool,
) -> PatchTargets:
    """Masked patches of all views: what the student guesses, what the teacher sees there.

    Args:
        student_head, teacher_head: `ProjectionHead`s.
        centering: `Centering` or `Sinkhorn` of the patches.
        student_patches: [V, N, D] with masked patches hidden.
        teacher_patches: [V, N, D] of the whole views.
        is_masked: [V, N] bool.
        temp: of the targets.
        update: the centre follows this batch afterwards; all processes have to say the same.
        freeze_prototypes: the student's prototypes get a gradient of 0.
    """
    where = is_masked.flatten().nonzero().squeeze(1)  # [M] in V * N
    head = _head(student_head)
    logits = head(student_patches.flatten(0, 1)[where], freeze_prototypes)
    everything = update and _normaliser(centering).over == "all"
    tokens = teacher_patches.flatten(0, 1)
    with torch.no_grad():
        z = _head(teacher_head).embed(tokens if everything else tokens[where])
    probs = _targets(teacher_head, centering, z, temp, where if everything else None, update=update)
    per_view = is_masked.sum(dim=1, keepdim=True).clamp(min=1)
    weight = (1.0 / per_view.float()).expand_as(is_masked).flatten()[where]
    return PatchTargets(logits, probs, weight, len(is_masked))


def class_targets(
    student_head: nn.Module,
    teacher_head: nn.Module,
    centering: nn.Module,
    student_cls: Tensor,
    teacher_cls: Tensor,
    temp: float,
    *,
    update: bool,
    freeze_prototypes: bool,
) -> ClassTargets:
    """Class tokens of all views, and of the student's local crops.

    Args:
        student_head, teacher_head: `ProjectionHead`s.
        centering: `Centering` or `Sinkhorn` of the class tokens.
        student_cls: [B, G + L, D], the G views first.
        teacher_cls: [B, G, D].
        temp, update, freeze_prototypes: as in `patch_targets`.
    """
    logits = _head(student_head)(student_cls, freeze_prototypes)
    with torch.no_grad():
        z = _head(teacher_head).embed(teacher_cls.flatten(0, 1))
    probs = _targets(teacher_head, centering, z, temp, None, update=update)
    return ClassTargets(logits, probs.unflatten(0, teacher_cls.shape[:2]))


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
    all rows then move it."""
    head, normaliser = _head(teacher_head), _normaliser(centering)
    probs = normaliser(head.logits(z if where is None else z[where]), temp)
    if update:
        normaliser.follow(head.logits(z.mean(dim=0)), len(z))
    return probs


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
