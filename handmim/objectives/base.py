"""What a pretraining objective is, what it is built from, and what it sees of a step.

Letters: B batch, G views, L local crops, N patches, M masked patches of the batch, D width, K
pseudo-keypoints of d numbers.
"""

import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from handmim.losses.composite import WeightedLoss
from handmim.models.teacher import Centering, Sinkhorn
from handmim.types import PretrainBatch, StepInfo, Tokens

T = TypeVar("T")
ENTROPY_ROWS = 64  # logarithms of all targets of a large batch would cost a percent of a step

# What an objective may read, and the shared head behind it; the task computes nothing else.
READS: dict[str, str | None] = {
    "cls": None,  # class tokens, beside `taps`; without taps they are always there
    "masked_patches": None,  # student tokens of masked patches
    "visible_patches": None,  # student tokens of the other patches
    "local_cls": None,  # student class tokens of local crops
    "keypoints": "keypoint",  # points of the shared head
    "projected_patches": "projection",  # masked patches after the shared head
    "projected_cls": "projection",  # class tokens after the shared head
    "embedded_cls": "embedding",  # class tokens of all views after the shared head
    "all_projected_patches": None,  # all patches of the teacher after `projection`, for a centre
    "teacher_cls": None,
    "teacher_masked_patches": None,
    "teacher_patches": None,  # of all patches
    "teacher_keypoints": None,  # points of the teacher's head `keypoint`
}
# Reads that need the student's last block whatever is tapped.
LAST_BLOCK = {
    "cls", "local_cls", "keypoints", "projected_patches", "projected_cls", "embedded_cls",
}  # fmt: skip


class UnreadError(ValueError):
    """An objective uses what no `reads` names."""


def call(name: str, method: Callable[..., T], *args: Any) -> T:
    """Call a method of an objective; an error of what it may read gets the objective's name."""
    try:
        return method(*args)
    except UnreadError as error:
        error.args = (f"objective {name}: {error}",)
        raise


@dataclass
class Setup:
    """What objectives are built from."""

    dim: int  # width of the tokens
    patch_px: int = 8
    grid_hw: tuple[int, int] = (4, 4)  # patches per column and row
    depth: int = 2  # blocks of the backbone
    _: KW_ONLY
    # Constructors of shared heads, called with those of `dim=` and `grid_hw=` that they take.
    heads: Mapping[str, Callable[..., nn.Module]] = field(default_factory=dict)
    centering: Callable[..., Centering | Sinkhorn] = Centering  # called with `num_prototypes=`
    drops_masked: bool = False  # masked patches have no student token
    built: dict[str, nn.Module] = field(default_factory=dict)  # shared heads, where required

    def make_head(self, name: str) -> Any:
        """Another head of the settings of a shared one. Raises: ValueError when there is none."""
        if name not in self.heads:
            raise ValueError(f"an objective reads the head {name!r}, which is missing")
        sizes = {"dim": self.dim, "grid_hw": self.grid_hw}
        taken = inspect.signature(self.heads[name]).parameters
        return self.heads[name](**{k: v for k, v in sizes.items() if k in taken})

    def shared(self, name: str) -> Any:
        """A shared head, built for the first objective that requires it."""
        if name not in self.built:
            self.built[name] = self.make_head(name)
        return self.built[name]

    def build(self, objective: "Objective") -> None:
        """Build an objective, after the shared heads that it reads."""
        for read, head in READS.items():
            if head and read in objective.reads:
                self.shared(head)
        objective.build(self)


def entropy_nats(probs: Tensor) -> Tensor:
    """Shannon entropy over the last axis: [..., P] -> [...]."""
    p = probs.float()
    return -p.clamp(min=1e-12).log_().mul_(p).sum(dim=-1)


class Targets(NamedTuple):
    """Prototype targets of distillation and the student's estimate of them."""

    teacher_probs: Tensor  # [n, P]
    student_logits: Tensor | None = None  # [n, P], where row by row
    student_temp: float = 1.0

    @torch.no_grad()
    def diagnostics(self, prefix: str = "targets") -> dict[str, Tensor]:
        """Entropies of the targets as shares of log P, under a prefix.

        entropy_of_mean falls to 0 when one prototype takes all; entropy_of_each, of evenly spaced
        rows of a large batch, rises to 1 when targets become uniform.
        """
        probs, top = self.teacher_probs, math.log(self.teacher_probs.shape[-1])
        some = probs[:: max(1, len(probs) // ENTROPY_ROWS)]
        return {
            f"{prefix}/entropy_of_mean": entropy_nats(probs.mean(dim=0)) / top,
            f"{prefix}/entropy_of_each": entropy_nats(some).mean() / top,
        }


class Objective(WeightedLoss):
    """One pretraining objective: its heads, target, loss and diagnostics.

    A subclass defines `loss`, and as far as it has them `build`, `predict` and `targets`; its
    settings are fields of a `loss_dataclass`.
    """

    reads: frozenset[str] = frozenset()  # of `READS`; without taps class tokens are always there
    taps: tuple[int, ...] = ()  # blocks whose patch tokens it reads, from 1; see `ctx.tapped`
    ema: tuple[str, ...] = ()  # own modules that the teacher holds copies of
    built_last: ClassVar[bool] = False  # after the others; keeps the order of random numbers

    def build(self, setup: Setup) -> None:
        """Make the objective's own modules; the task calls it once."""

    def predict(self, ctx: "StepContext") -> Any:
        """What the heads make of the tokens; None without a head."""

    def loss(self, ctx: "StepContext", prediction: Any) -> Tensor:
        """Scalar loss of what `predict` returned, without its weight."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Runs after the optimizer: centres of targets move."""
        for module in self.children():
            if isinstance(module, Centering):
                module.move()

    def targets(self, prediction: Any) -> dict[str, Targets]:
        """Prototype targets by the prefix of their diagnostics, where there are any."""
        return {}


@dataclass(eq=False)
class StepContext:
    """One batch as both networks encode it, and what several objectives share."""

    batch: PretrainBatch
    info: StepInfo
    # Of all views, [B*G, ...]; patches [M, D] where nothing reads others than masked ones.
    tokens: Tokens
    teacher_tokens: Tokens | None = None  # of whole views; None where nothing reads them
    _: KW_ONLY
    points: Tensor | None = None  # [B, G, K, d] of the student's shared head `keypoint`
    heads: Any = field(default_factory=dict)  # the student's shared heads by name
    # The teacher's copies of these, and of modules in `Objective.ema`.
    teacher_heads: nn.ModuleDict | None = None
    reads: frozenset[str] = frozenset()  # of all objectives
    taps: Sequence[int] = ()  # blocks of `tokens.taps`
    teacher_temp: float = 0.04  # of prototype targets
    freeze_prototypes: bool = False  # they get no gradient in this step
    drops_masked: bool = False  # masked patches have no student token
    ends_at_taps: bool = False  # no objective reads the last block
    training: bool = False
    _shared: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of `make`, called for the first objective that requires this key."""
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """(B, G)."""
        return len(self.batch.views), self.batch.views.shape[1]

    @property
    def is_masked(self) -> Tensor:
        """[B*G, N] bool."""
        return self.batch.is_masked.flatten(0, 1)

    @property
    def student(self) -> Tokens:
        """The student's tokens; beside taps reads "cls"."""
        if self.ends_at_taps:
            raise UnreadError("ctx.student is used, but no `reads` names 'cls'")
        return self.tokens

    @cached_property
    def tapped(self) -> dict[int, Tensor]:
        """[B*G, N, D] patch tokens of the student by block."""
        return dict(zip(self.taps, self.tokens.taps, strict=True))

    @property
    def cls(self) -> Tensor:
        """[B, G, D] class tokens of the student."""
        return self.student.cls.unflatten(0, self.shape)

    @property
    def patches(self) -> Tensor:
        """[B, G, N, D] patch tokens of the student; reads "masked_patches", "visible_patches"."""
        if self.student.patches.ndim == 2:
            raise UnreadError("ctx.patches is used, but no `reads` names 'visible_patches'")
        return self.student.patches.unflatten(0, self.shape)

    @property
    def masked_patches(self) -> Tensor:
        """[M, D] the student's tokens of masked patches; reads "masked_patches"."""
        patches = self.student.patches
        return patches if patches.ndim == 2 else patches.flatten(0, 1)[self.batch.masked_idx]

    @property
    def teacher(self) -> Tokens:
        """The teacher's tokens; reads "teacher_..."."""
        if self.teacher_tokens is None:
            raise UnreadError("ctx.teacher is used, but no `reads` names 'teacher_cls'")
        return self.teacher_tokens

    def teacher_head(self, name: str) -> Any:
        """The teacher's copy of a shared head, or of an objective's own module."""
        if self.teacher_heads is None:
            raise UnreadError("ctx.teacher_head is used, but no `reads` names 'teacher_cls'")
        return self.teacher_heads[name]

    @property
    def keypoints(self) -> Tensor:
        """[B, G, K, d] the student's pseudo-keypoints in each view's ndc; reads "keypoints"."""
        if self.points is None:
            raise UnreadError("ctx.keypoints is used, but no `reads` names 'keypoints'")
        return self.points

    @cached_property
    def teacher_keypoints(self) -> Tensor:
        """[B, G, K, d] those of the teacher, without gradient; reads "teacher_keypoints"."""
        tokens = self.teacher
        with torch.no_grad():
            points: Tensor = self.teacher_head("keypoint")(tokens)
        return points.unflatten(0, self.shape)


def view_weights(is_chosen: Tensor, idx: Tensor) -> Tensor:
    """[V, N] bool and the [M] indices of chosen patches in V * N: [M], 1 / (chosen patches of that
    view)."""
    per_view = is_chosen.sum(dim=1, keepdim=True).clamp(min=1)
    return (1.0 / per_view.float()).expand_as(is_chosen).flatten()[idx]
