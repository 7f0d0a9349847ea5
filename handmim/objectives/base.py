"""What a pretraining objective is, what it is built from, and what it sees of a step.

Letters: B batch, G views, L local crops, N patches, M masked patches of the batch, D width, K
pseudo-keypoints of d numbers.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from handmim.engine.optim import Schedule, as_schedule
from handmim.models.centering import Centering, Sinkhorn
from handmim.types import PretrainBatch, StepInfo, Tokens

T = TypeVar("T")

# What an objective may read; the task computes nothing else.
READS = {
    "masked_patches": "student tokens of masked patches",
    "visible_patches": "student tokens of the other patches",
    "local_cls": "student class tokens of local crops",
    "keypoints": "points of the shared head `keypoint`",
    "projected_patches": "masked patches after the shared head `projection`",
    "projected_cls": "class tokens after the shared head `projection`",
    "all_projected_patches": "all patches of the teacher after `projection`, for a centre",
    "teacher_cls": "the teacher's class tokens",
    "teacher_masked_patches": "the teacher's tokens of masked patches",
    "teacher_patches": "the teacher's tokens of all patches",
    "teacher_keypoints": "points of the teacher's head `keypoint`",
}
# The shared head behind a read.
SHARED = {
    "keypoints": "keypoint",
    "projected_patches": "projection",
    "projected_cls": "projection",
}


class Setup:
    """What heads of objectives are built from.

    Args:
        dim: width of the tokens.
        patch_px: side of a patch.
        grid_hw: patches per column and row.
        depth: blocks of the backbone.
        heads: constructors of shared heads by name, called with those of `dim=` and `grid_hw=` that
            they take.
        centering: constructor of target normalisers, called with `num_prototypes=`.
        drops_masked: masked patches have no student token.
    """

    def __init__(
        self,
        dim: int,
        patch_px: int = 8,
        grid_hw: tuple[int, int] = (4, 4),
        depth: int = 2,
        *,
        heads: Mapping[str, Callable[..., nn.Module]] | None = None,
        centering: Callable[..., Centering | Sinkhorn] = Centering,
        drops_masked: bool = False,
    ) -> None:
        self.dim, self.patch_px, self.grid_hw, self.depth = dim, patch_px, grid_hw, depth
        self.centering, self.drops_masked = centering, drops_masked
        self._makers = dict(heads or {})
        self.built: dict[str, nn.Module] = {}  # shared heads that an objective required

    def make_head(self, name: str) -> Any:
        """Another head of the settings of a shared one.

        Raises: ValueError when it is not configured.
        """
        if name not in self._makers:
            raise ValueError(f"an objective reads the head {name!r}, which is missing")
        sizes = {"dim": self.dim, "grid_hw": self.grid_hw}
        taken = inspect.signature(self._makers[name]).parameters
        return self._makers[name](**{k: v for k, v in sizes.items() if k in taken})

    def shared(self, name: str) -> Any:
        """A shared head, built for the first objective that requires it."""
        if name not in self.built:
            self.built[name] = self.make_head(name)
        return self.built[name]

    def build(self, objective: "Objective") -> None:
        """Build an objective, after the shared heads that it reads."""
        for read, head in SHARED.items():
            if read in objective.reads:
                self.shared(head)
        objective.build(self)


class Objective(nn.Module):
    """One pretraining objective: its heads, target, loss and diagnostics.

    A subclass defines `loss`, and as far as it has them `build`, `predict` and `targets`.

    Args:
        weight: of the loss in the sum, constant or a schedule of the step.
    """

    reads: frozenset[str] = frozenset()  # of `READS`; the class tokens are always there
    taps: tuple[int, ...] = ()  # blocks whose patch tokens it reads, and nothing else; from 1
    ema: tuple[str, ...] = ()  # own modules that the teacher holds copies of
    built_last: ClassVar[bool] = False  # after the others; keeps the order of random numbers

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        self.weight = as_schedule(weight)

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

    def targets(self, prediction: Any) -> "dict[str, Targets]":
        """Prototype targets by the prefix of their diagnostics, where there are any."""
        return {}


class Targets(NamedTuple):
    """Prototype targets of distillation and the student's estimate of them."""

    teacher_probs: Tensor  # [n, P]
    student_logits: Tensor | None = None  # [n, P], where row by row
    student_temp: float = 1.0


class StepContext:
    """One batch as both networks encode it, and what several objectives share.

    Shared results are computed on first use.

    Args:
        batch: views, masks and geometry.
        info: step and number of steps.
        student: tokens of all views, [B*G, ...]; masked patches alone, [M, D], where nothing reads
            others.
        teacher: tokens of all whole views, likewise; None where nothing reads them.
        keypoints: [B, G, K, d] of the student's shared head `keypoint`.
        heads: the student's shared heads by name.
        teacher_heads: the teacher's copies of these, and of modules in `Objective.ema`.
        reads: what all objectives read.
        taps: blocks of `student.taps`.
        teacher_temp: of prototype targets.
        freeze_prototypes: prototypes get no gradient in this step.
        drops_masked: masked patches have no student token.
        training: the task is in training mode.
    """

    def __init__(
        self,
        batch: PretrainBatch,
        info: StepInfo,
        student: Tokens,
        teacher: Tokens | None = None,
        *,
        keypoints: Tensor | None = None,
        heads: Mapping[str, nn.Module] | nn.ModuleDict | None = None,
        teacher_heads: nn.ModuleDict | None = None,
        reads: frozenset[str] = frozenset(),
        taps: Sequence[int] = (),
        teacher_temp: float = 0.04,
        freeze_prototypes: bool = False,
        drops_masked: bool = False,
        training: bool = False,
    ) -> None:
        self.batch, self.info, self.student = batch, info, student
        self._teacher, self._keypoints, self.reads = teacher, keypoints, reads
        self.tapped = dict(zip(taps, student.taps, strict=True))  # patch tokens by block
        self.heads: Any = heads or {}
        self._teacher_heads = teacher_heads
        self.teacher_temp, self.freeze_prototypes = teacher_temp, freeze_prototypes
        self.drops_masked, self.training = drops_masked, training
        self._shared: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of `make`, called for the first objective that requires this key."""
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """(B, G)."""
        b, g = self.batch.views.shape[:2]
        return b, g

    @property
    def is_masked(self) -> Tensor:
        """[B*G, N] bool."""
        return self.batch.is_masked.flatten(0, 1)

    @property
    def cls(self) -> Tensor:
        """[B, G, D] class tokens of the student."""
        return self.student.cls.unflatten(0, self.shape)

    @property
    def all_cls(self) -> Tensor:
        """[B, G + L, D] class tokens of the views, then of the local crops."""
        local = self.student.local_cls
        if local is None:
            return self.cls
        return torch.cat([self.cls, local.unflatten(0, (self.shape[0], -1))], dim=1)

    @property
    def patches(self) -> Tensor:
        """[B, G, N, D] patch tokens of the student; reads "masked_patches", "visible_patches"."""
        if self.student.patches.ndim == 2:
            raise _unread("patches", "visible_patches")
        return self.student.patches.unflatten(0, self.shape)

    @property
    def masked_patches(self) -> Tensor:
        """[M, D] the student's tokens of masked patches; reads "masked_patches"."""
        patches = self.student.patches
        return patches if patches.ndim == 2 else patches.flatten(0, 1)[self.batch.masked_idx]

    @property
    def teacher(self) -> Tokens:
        """The teacher's tokens; reads "teacher_..."."""
        if self._teacher is None:
            raise _unread("teacher", "teacher_cls")
        return self._teacher

    def teacher_head(self, name: str) -> Any:
        """The teacher's copy of a shared head, or of an objective's own module."""
        if self._teacher_heads is None:
            raise _unread("teacher_head", "teacher_cls")
        return self._teacher_heads[name]

    @property
    def keypoints(self) -> Tensor:
        """[B, G, K, d] the student's pseudo-keypoints in each view's ndc; reads "keypoints"."""
        if self._keypoints is None:
            raise _unread("keypoints", "keypoints")
        return self._keypoints

    @cached_property
    def teacher_keypoints(self) -> Tensor:
        """[B, G, K, d] those of the teacher, without gradient; reads "teacher_keypoints"."""
        tokens = self.teacher
        with torch.no_grad():
            points: Tensor = self.teacher_head("keypoint")(tokens)
        return points.unflatten(0, self.shape)


def _unread(name: str, read: str) -> ValueError:
    return ValueError(f"an objective uses ctx.{name}, but no `reads` names {read!r}")
