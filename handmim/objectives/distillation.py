"""Self-distillation by prototypes: masked patches (iBOT), class tokens (DINO), and KoLeo.

Heads run on class tokens and masked patches only. Targets are centred by earlier steps.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from handmim.engine.optim import Schedule, as_schedule
from handmim.losses.composite import choice, loss_dataclass, positive
from handmim.models.layers import BatchNormMlp
from handmim.models.teacher import Centering, Sinkhorn
from handmim.objectives.base import Objective, Setup, StepContext, Targets, view_weights
from handmim.utils.arguments import at_least
from handmim.utils.ranks import gathered


class ProjectionHead(nn.Module):
    """D -> hidden -> hidden -> bottleneck, L2, then logits against P unit prototypes (DINO, iBOT).

    Logits are linear in the unit bottleneck z: the mean logit of many tokens is `logits` of their
    mean z. `train_gain` learns a gain per prototype (iBOT's ViT-S recipe,
    `norm_last_layer=false`); else it stays 1 (its ViT-B recipe). `batch_norm` is SwAV's recipe:
    hidden layers with batch norm and ReLU instead of GELU.
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
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, num_prototypes=num_prototypes, hidden_dim=hidden_dim)
        at_least(1, bottleneck_dim=bottleneck_dim, num_layers=num_layers)
        self.mlp: nn.Sequential
        if batch_norm:
            self.mlp = BatchNormMlp(dim, hidden_dim, bottleneck_dim, num_layers - 1)
        else:
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
        """[..., bottleneck] to [..., P], in full precision: small temperatures magnify rounding.

        Frozen prototypes get a gradient of 0: distributed training waits for every parameter.
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
        """Hide frozen prototypes from the optimizer, after backward: a gradient of 0 would decay
        them and count as a step of AdamW."""
        self.prototypes.grad = None
        self.gain.grad = None


class Pair(NamedTuple):
    """Tokens of one kind, what a prototype head makes of them, or predictions and targets."""

    student: Tensor  # [..., D], then logits [..., P]
    teacher: Tensor  # [..., D], then [..., bottleneck] of unit length, then probabilities [..., P]


def project(ctx: StepContext, head: ProjectionHead, name: str, pairs: Sequence[Pair]) -> list[Pair]:
    """Logits of the student, and bottlenecks of the teacher by its copy `name` of the head; each is
    called once on all pairs, as gradients of its weights are then made once, not added."""
    logits = _together([p.student for p in pairs], lambda x: head(x, ctx.freeze_prototypes))
    with torch.no_grad():
        z = _together([p.teacher for p in pairs], ctx.teacher_head(name).embed)
    return [Pair(*parts) for parts in zip(logits, z, strict=True)]


def _together(parts: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    if len(parts) == 1:
        return [function(parts[0])]
    sizes = [part.shape[:-1] for part in parts]
    rows = function(torch.cat([part.flatten(0, -2) for part in parts]))
    split = rows.split([size.numel() for size in sizes])
    return [part.unflatten(0, size) for part, size in zip(split, sizes, strict=True)]


def class_tokens(ctx: StepContext) -> Tensor:
    """[B, G + L, D] the student's class tokens of views, then of local crops; reads "local_cls"."""
    views, local = ctx.cls, ctx.student.local_cls
    if local is None:
        return views
    return torch.cat([views, local.unflatten(0, (len(views), -1))], dim=1)


def class_pair(ctx: StepContext) -> Pair:
    """Class tokens: [B, G + L, D] of the student, [B, G, D] of the teacher."""
    return Pair(class_tokens(ctx), ctx.teacher.cls.unflatten(0, ctx.shape))


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
        pairs = {name: pair(ctx) for name, pair in kinds.items() if name in ctx.reads}
        done = project(ctx, ctx.heads["projection"], "projection", list(pairs.values()))
        return dict(zip(pairs, done, strict=True))

    return ctx.once("projected", make)


@torch.no_grad()
def teacher_probs(
    head: ProjectionHead,
    centering: Centering | Sinkhorn,
    z: Tensor,
    temp: float,
    where: Tensor | None = None,
    *,
    update: bool,
) -> Tensor:
    """Probabilities of rows `where` of z [n, bottleneck], by the centre of earlier steps; all rows
    count for the next, where it is updated, which all processes do or none."""
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
    """- sum_p probs log softmax(logits / temp), in full precision: [..., P] twice to [...];
    differentiable in the logits, once. Sums of targets need not be 1."""
    with torch.autocast(logits.device.type, enabled=False):
        return torch.as_tensor(_SoftCrossEntropy.apply(logits, probs.detach(), temp))


@loss_dataclass
class PatchDistill(Objective):
    """Cross-entropy from teacher to student at masked patches, after the head `projection` (Zhou et
    al. 2022, iBOT, arXiv 2111.07832), gathered over masked positions as in DINOv2."""

    reads = frozenset({"projected_patches", "masked_patches", "teacher_masked_patches"})
    student_temp: float = positive(0.1)

    def build(self, setup: Setup) -> None:
        self.centering = setup.centering(num_prototypes=setup.shared("projection").num_prototypes)
        if self.centering.over == "all":
            self.reads = self.reads | {"teacher_patches", "all_projected_patches"}

    def predict(self, ctx: StepContext) -> Pair:
        """Masked patches [M, P], flattened over views."""
        logits, z = projected(ctx)["projected_patches"]
        where = ctx.batch.masked_idx if len(z) == ctx.is_masked.numel() else None  # of all patches
        head, temp, update = ctx.teacher_head("projection"), ctx.teacher_temp, self.training
        return Pair(logits, teacher_probs(head, self.centering, z, temp, where, update=update))

    def loss(self, ctx: StepContext, prediction: Pair) -> Tensor:
        """Mean per masked patch of a view, then over all views; those without a mask count 0."""
        ce = soft_cross_entropy(*prediction, temp=self.student_temp)  # [M]
        weight = view_weights(ctx.is_masked, ctx.batch.masked_idx)
        return (ce * weight).sum() / len(ctx.is_masked)

    def targets(self, prediction: Pair) -> dict[str, Targets]:
        return {"targets": Targets(prediction.teacher, prediction.student, self.student_temp)}


@loss_dataclass
class ClassObjective(Objective):
    """An objective with prototype targets of one token per view."""

    centering: Any = field(init=False)
    teacher_temp: float | Schedule | None = None  # None takes the task's

    def class_targets(self, ctx: StepContext, pair: Pair, name: str) -> Pair:
        """Logits [B, G + L, P] of the G views, then L local crops, and targets [B, G, P] after a
        head, of which the teacher's copy is called `name`."""
        head, z, temp = ctx.teacher_head(name), pair.teacher, ctx.teacher_temp
        if self.teacher_temp is not None:
            temp = as_schedule(self.teacher_temp)(*ctx.info)
        probs = teacher_probs(head, self.centering, z.flatten(0, 1), temp, update=self.training)
        return Pair(pair.student, probs.unflatten(0, z.shape[:2]))


def cross_view_ce(classes: Pair, temp: float) -> Tensor:
    """Cross-entropy of `ClassObjective.class_targets` from the teacher's view q to the student's
    view v, mean over samples and all pairs with v != q.

    Raises: ValueError for a single view without local crops.
    """
    logits, target = classes
    num_student, num_views = logits.shape[1], target.shape[1]
    if num_student < 2:
        raise ValueError("class distillation requires views.num_views >= 2 or views.num_local >= 1")
    others = target.sum(dim=1, keepdim=True).repeat(1, num_student, 1)
    others[:, :num_views] -= target
    ce = soft_cross_entropy(logits, others, temp).sum(dim=1)  # [B], over all pairs
    return ce.mean() / (num_views * (num_student - 1))


@loss_dataclass
class ClassDistill(ClassObjective):
    """`cross_view_ce` of class tokens (Caron et al. 2021, DINO, arXiv 2104.14294), after the head
    that is "shared" with masked patches, or an "own" one of the same sizes."""

    reads = frozenset({"projected_cls", "local_cls", "teacher_cls"})
    head: str = choice("shared", "own")
    student_temp: float = positive(0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head == "own":
            self.reads = self.reads - {"projected_cls"}
            self.ema = ("class_projection",)

    def build(self, setup: Setup) -> None:
        if self.head == "own":
            self.class_projection = setup.make_head("projection")
        head = self.class_projection if self.head == "own" else setup.shared("projection")
        self.centering = setup.centering(num_prototypes=head.num_prototypes)

    def predict(self, ctx: StepContext) -> Pair:
        if self.head == "shared":
            return self.class_targets(ctx, projected(ctx)["projected_cls"], "projection")
        name = "class_projection"
        (pair,) = project(ctx, self.class_projection, name, [class_pair(ctx)])
        return self.class_targets(ctx, pair, name)

    def loss(self, ctx: StepContext, prediction: Pair) -> Tensor:
        return cross_view_ce(prediction, self.student_temp)

    def targets(self, prediction: Pair) -> dict[str, Targets]:
        return {"class_targets": Targets(prediction.teacher.flatten(0, 1))}


def koleo(tokens: Tensor, eps: float = 1e-8, *, sync: bool = False) -> Tensor:
    """Minus the mean log distance to the nearest neighbour of directions [n, D], with `sync` of all
    processes: scalar, fp32, 0 of one token (Sablayrolles et al. 2019, arXiv 1806.03198)."""
    with torch.autocast(tokens.device.type, enabled=False):
        x = F.normalize(tokens.float(), dim=-1)
        others, first = gathered(x) if sync else (x, 0)
        if len(others) < 2:
            return 0.0 * x.sum()
        with torch.no_grad():
            cosine = x @ others.T
            cosine.diagonal(first).fill_(-torch.inf)
            nearest = cosine.argmax(dim=1)
        return -((x - others[nearest]).norm(dim=-1) + eps).log().mean()


class Koleo(Objective):
    """`koleo` of the student's class tokens, summed over views as in DINOv2 (arXiv 2304.07193): two
    views of one crop are no neighbours."""

    def loss(self, ctx: StepContext, prediction: None) -> Tensor:
        views = ctx.cls.unbind(dim=1)
        return torch.stack([koleo(view, sync=self.training) for view in views]).sum()
