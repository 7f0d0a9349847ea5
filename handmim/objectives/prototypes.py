"""Prototypes of self-distillation: the projection head, the targets, and the cross-entropies.

Heads run on class tokens and masked patches only, which gives what running them on all tokens and
masking the loss would give; tokens that share a head go through it in one call. Targets are centred
by what earlier steps saw; the centre moves when the step is over (DINO, iBOT).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from handmim.models.centering import Centering, Sinkhorn
from handmim.objectives.base import StepContext


class ProjectionHead(nn.Module):
    """D -> hidden -> hidden -> bottleneck, L2, then logits against P unit prototypes (DINO, iBOT).

    Logits are linear in the unit bottleneck z: the mean logit of many tokens is `logits` of their
    mean z, so that a centre over all patches costs P logits rather than P for each patch.

    Args:
        dim: width of the tokens.
        num_prototypes, hidden_dim, bottleneck_dim: sizes.
        num_layers: linear layers of the MLP, with GELU between.
        train_gain: learn a gain per prototype (iBOT's ViT-S recipe, `norm_last_layer=false`)
            instead of keeping it at 1 (its ViT-B recipe).
    Raises: ValueError for a size below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_prototypes: int = 8192,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        train_gain: bool = True,
    ) -> None:
        super().__init__()
        sizes = {
            "num_prototypes": num_prototypes,
            "hidden_dim": hidden_dim,
            "bottleneck_dim": bottleneck_dim,
            "num_layers": num_layers,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        widths = [dim] + [hidden_dim] * (num_layers - 1) + [bottleneck_dim]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.num_prototypes = num_prototypes
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        self.gain = nn.Parameter(torch.ones(num_prototypes), requires_grad=train_gain)
        # DINO truncates at 2.0, which is 100 standard deviations: a normal distribution.
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.prototypes, std=0.02)

    def embed(self, tokens: Tensor) -> Tensor:
        """[..., D] tokens to [..., bottleneck] of unit length, in full precision."""
        return F.normalize(self.mlp(tokens).to(self.prototypes.dtype), dim=-1)

    def logits(self, z: Tensor, freeze_prototypes: bool = False) -> Tensor:
        """[..., bottleneck] to [..., P], in full precision also under autocast: temperatures around
        0.05 magnify what bf16 rounds off.

        Frozen prototypes get a gradient of 0 rather than none: distributed training waits for every
        parameter. `cancel_last_layer_gradients` then spares them the optimizer.
        """
        with torch.autocast(z.device.type, enabled=False):
            weight = F.normalize(self.prototypes, dim=-1) * self.gain.unsqueeze(-1)
            if freeze_prototypes:
                weight = weight.detach() + 0.0 * weight
            return F.linear(z.to(weight.dtype), weight)

    def forward(self, tokens: Tensor, freeze_prototypes: bool = False) -> Tensor:
        """[..., D] tokens to [..., P] logits in [-gain, gain]."""
        return self.logits(self.embed(tokens), freeze_prototypes)

    def cancel_last_layer_gradients(self) -> None:
        """For steps in which prototypes are frozen, between backward and the optimizer.

        Without a gradient an optimizer leaves a parameter alone. With one of 0 it would decay it,
        and AdamW would count the step: a mean square that has long been 0 makes the first steps
        after the freeze several times too long.
        """
        self.prototypes.grad = None
        self.gain.grad = None


class Pair(NamedTuple):
    """Tokens of one kind, before or after a prototype head."""

    student: Tensor  # [..., D], then logits [..., P]
    teacher: Tensor  # [..., D], then [..., bottleneck] of unit length


def project(
    head: ProjectionHead,
    teacher_head: ProjectionHead,
    pairs: Sequence[Pair],
    *,
    freeze_prototypes: bool,
) -> list[Pair]:
    """Logits of the student and bottlenecks of the teacher, each network's head called once.

    One call costs less than several: gradients of its weights are made once, not made and added.

    Args:
        pairs: tokens; kinds may differ in number and shape.
        freeze_prototypes: the student's prototypes get a gradient of 0.
    """
    logits = _together([p.student for p in pairs], lambda x: head(x, freeze_prototypes))
    with torch.no_grad():
        z = _together([p.teacher for p in pairs], teacher_head.embed)
    return [Pair(*parts) for parts in zip(logits, z, strict=True)]


def _together(parts: Sequence[Tensor], call: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Call once on the rows of all parts [..., D]: [..., out] of each."""
    if len(parts) == 1:
        return [call(parts[0])]
    sizes = [part.shape[:-1] for part in parts]
    rows = call(torch.cat([part.flatten(0, -2) for part in parts]))
    split = rows.split([size.numel() for size in sizes])
    return [part.unflatten(0, size) for part, size in zip(split, sizes, strict=True)]


def class_pair(ctx: StepContext) -> Pair:
    """Class tokens: [B, G + L, D] of the student, [B, G, D] of the teacher."""
    return Pair(ctx.all_cls, ctx.teacher.cls.unflatten(0, ctx.shape))


def patch_pair(ctx: StepContext) -> Pair:
    """Masked patches [M, D]; of the teacher all patches [B*G*N, D] where a centre follows them."""
    patches = ctx.teacher.patches
    if patches.ndim == 3:  # of all patches
        patches = patches.flatten(0, 1)
        if not (ctx.training and "all_projected_patches" in ctx.reads):
            patches = patches[ctx.batch.masked_idx]
    return Pair(ctx.masked_patches, patches)


def projected(ctx: StepContext) -> dict[str, Pair]:
    """Tokens after the shared head `projection` by what reads them, in one call."""

    def make() -> dict[str, Pair]:
        kinds = {"projected_patches": patch_pair, "projected_cls": class_pair}
        names = [name for name in kinds if name in ctx.reads]
        heads = ctx.heads["projection"], ctx.teacher_head("projection")
        pairs = [kinds[name](ctx) for name in names]
        done = project(*heads, pairs, freeze_prototypes=ctx.freeze_prototypes)
        return dict(zip(names, done, strict=True))

    return ctx.once("projected", make)


class PatchTargets(NamedTuple):
    """Masked patches only, flattened over views."""

    student_logits: Tensor  # [M, P]
    teacher_probs: Tensor  # [M, P]
    weight: Tensor  # [M], 1 / (number of masked patches in that view)
    num_views: int  # B * G, masked or not


class ClassTargets(NamedTuple):
    """Class tokens of all views."""

    student_logits: Tensor  # [B, G + L, P]: the G views, then L local crops
    teacher_probs: Tensor  # [B, G, P]


def patch_targets(
    pair: Pair,
    teacher_head: ProjectionHead,
    centering: Centering | Sinkhorn,
    is_masked: Tensor,
    masked_idx: Tensor,
    temp: float,
    *,
    update: bool,
) -> PatchTargets:
    """The student's logits of masked patches and the teacher's probabilities there.

    Args:
        pair: logits of the student [M, P]; bottlenecks of the teacher at the masked patches,
            [M, ..], or at all of them [V * N, ..] where the centre follows all.
        is_masked: [V, N] bool.
        masked_idx: [M] indices of masked patches in V * N.
        temp: of the targets.
        update: the centre follows this batch; the same in all processes.
    """
    where = masked_idx if len(pair.teacher) == is_masked.numel() else None
    probs = teacher_probs(teacher_head, centering, pair.teacher, temp, where, update=update)
    per_view = is_masked.sum(dim=1, keepdim=True).clamp(min=1)
    weight = (1.0 / per_view.float()).expand_as(is_masked).flatten()[masked_idx]
    return PatchTargets(pair.student, probs, weight, len(is_masked))


def class_targets(
    pair: Pair,
    teacher_head: ProjectionHead,
    centering: Centering | Sinkhorn,
    temp: float,
    *,
    update: bool,
) -> ClassTargets:
    """Logits of the student [B, G + L, P] and probabilities of the teacher's views [B, G, P];
    arguments as in `patch_targets`."""
    z = pair.teacher
    probs = teacher_probs(teacher_head, centering, z.flatten(0, 1), temp, None, update=update)
    return ClassTargets(pair.student, probs.unflatten(0, z.shape[:2]))


@torch.no_grad()
def teacher_probs(
    head: ProjectionHead,
    centering: Centering | Sinkhorn,
    z: Tensor,
    temp: float,
    where: Tensor | None,
    *,
    update: bool,
) -> Tensor:
    """Probabilities of the chosen rows of z [n, bottleneck] (None = all), by the centre as it was;
    all rows count for the next one."""
    probs = centering(head.logits(z if where is None else z[where]), temp)
    if update:
        centering.follow(head.logits(z.mean(dim=0)), len(z))
    return torch.as_tensor(probs)


class _SoftCrossEntropy(torch.autograd.Function):
    """The gradient is made while the loss is: with thousands of prototypes the logits are the
    largest tensors of a step, and autograd would keep and make several of their size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, temp: float) -> Tensor:
        scaled = logits / temp
        log_sum = scaled.logsumexp(dim=-1, keepdim=True)
        agreement = torch.linalg.vecdot(probs, scaled)
        mass = probs.sum(dim=-1, keepdim=True)
        if ctx.needs_input_grad[0]:
            # d/dlogits = (mass softmax(scaled) - probs) / temp
            by_logits = scaled.sub_(log_sum).exp_().mul_(mass).sub_(probs).div_(temp)
            ctx.save_for_backward(by_logits)
        return (mass * log_sum).squeeze(-1) - agreement

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (by_logits,) = ctx.saved_tensors
        return by_logits * grad.unsqueeze(-1), None, None


def soft_cross_entropy(logits: Tensor, probs: Tensor, temp: float) -> Tensor:
    """- sum_p probs log softmax(logits / temp).

    Args:
        logits: [..., P] in full precision.
        probs: [..., P] non-negative targets without a gradient; their sums need not be 1.
        temp: of the softmax.
    Returns: [...]; differentiable in the logits, once.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return torch.as_tensor(_SoftCrossEntropy.apply(logits, probs.detach(), temp))


def cross_view_ce(classes: ClassTargets, temp: float) -> Tensor:
    """Cross-entropy from the teacher's view q to the student's view v, for all q and all v != q.

    Args:
        classes: local crops differ from every view of the teacher.
        temp: of the student's softmax.
    Returns: scalar, mean over the G (G + L - 1) pairs and over samples.
    Raises: ValueError for a single view without local crops.
    """
    logits, target = classes.student_logits, classes.teacher_probs
    num_student, num_views = logits.shape[1], target.shape[1]
    if num_student < 2:
        raise ValueError(
            "class distillation requires another view to predict: views.num_views >= 2 or "
            "views.num_local >= 1"
        )
    others = target.sum(dim=1, keepdim=True).repeat(1, num_student, 1)
    others[:, :num_views] -= target
    ce = soft_cross_entropy(logits, others, temp).sum(dim=1)  # [B], over all pairs
    return ce.mean() / (num_views * (num_student - 1))
