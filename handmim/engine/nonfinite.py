"""Losses, gradients and weights that are not finite: found without waiting for the device where
that would cost, refused, skipped or rewound."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from handmim.engine.checkpoint import save_checkpoint
from handmim.engine.prefetch import Ledger, PrefetchingLoader
from handmim.engine.saver import Saver, falls_on
from handmim.engine.step import StepOutput, TrainStep
from handmim.types import StepInfo, StepResult
from handmim.utils.processes import GOES_ON
from handmim.utils.run import Run

log = logging.getLogger(__name__)

STOP, SKIP, REWIND = POLICIES = ("stop", "skip", "rewind")
MOST_SKIPPED, OF = 10, 20  # of so many steps; and as often one checkpoint is rewound to
MOST_KEPT = 3  # batches of refused steps that stay on disk


class NotFiniteError(FloatingPointError):
    """A loss, gradient or weight is not finite.

    Args:
        step: the first such step.
        text: what happened and what to do.
        was_updated: whether the weights were updated since, and are lost.
    """

    def __init__(self, step: int, text: str, *, was_updated: bool) -> None:
        super().__init__(text)
        self.step, self.was_updated = step, was_updated


class LoadingError(RuntimeError):
    """A batch could not be loaded in the middle of a run, which was saved."""


class FiniteWatch:
    """Remembers on the device which step went wrong first.

    Args:
        device: where losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), torch.inf, device=device)

    def see(self, step: int, *values: Tensor | None) -> None:
        """Values [] of a step."""
        known = [v.detach().float() for v in values if v is not None]
        if known:
            is_bad = ~torch.stack(known).isfinite().all()
            self._first = torch.where(is_bad, self._first.clamp(max=step), self._first)

    @property
    def first_bad(self) -> int | None:
        """The first step with a value that is not finite. Waits for the device."""
        first = float(self._first)
        return None if first == float("inf") else int(first)

    def first_bad_of_all(self, run: Run) -> int:
        """The first such step of all processes, one of which has one."""
        first = run.fabric.all_reduce(self._first, reduce_op="min")
        assert isinstance(first, Tensor)
        return int(first)


class FiniteGuard:
    """Finds losses and gradients that are not finite: before the update at steps that are checked,
    else before anything of them is logged or saved; and such weights before they are.

    Args:
        run: devices and folder.
        task: whose weights are checked.
        every: steps between checks, which wait for the device; None checks every step on a CPU and
            none elsewhere.
    """

    def __init__(self, run: Run, task: nn.Module, every: int | None) -> None:
        self.run, self.task, self._watch = run, task, FiniteWatch(run.device)
        self.every = every or (1 if run.device.type == "cpu" else None)

    def checks(self, step: int) -> bool:
        """Whether a step is checked before its update."""
        return falls_on(step, self.every)

    def before_update(
        self, info: StepInfo, batch: Any, result: StepResult, norm: Tensor | None
    ) -> None:
        """Check a step, or note it; a refused batch is kept on disk.

        Raises: NotFiniteError: no update was made, or the weights are lost since an earlier one.
        """
        # fp16's scaler skips steps with such gradients itself.
        norm = None if self.run.precision == "16-mixed" else norm
        if not self.checks(info.step):
            self._watch.see(info.step, result.loss, norm)
            return
        if self.run.any_rank(not bool(result.loss.isfinite())):
            self._refuse(info, batch, result, "loss")
        if norm is not None and not bool(norm.isfinite()):
            self._refuse(info, batch, result, "gradient norm")

    def check(self, last: int) -> None:
        """Read what was noted, and check the weights; called by all processes.

        Args:
            last: step of the last update.
        Raises: NotFiniteError: the weights are lost.
        """
        weights = [param for param in self.task.parameters() if param.numel()]
        self._watch.see(max(0, last), get_total_norm(weights, norm_type=torch.inf))
        step = self._watch.first_bad
        if not self.run.any_rank(step is not None):
            return
        where = "on another process" if step is None else f"at step {step}"
        raise NotFiniteError(
            self._watch.first_bad_of_all(self.run),
            f"the loss, its gradient or the weights were not finite {where}, and the weights are "
            f"lost since: {GOES_ON} (in {self.run.dir}); take a lower optim.lr.start or precision "
            "32-true, or go past the step with trainer.nonfinite=rewind; "
            "trainer.check_finite_every=1 finds such losses before the update and keeps the batch",
            was_updated=True,
        )

    def forget(self) -> None:
        """Begin anew: the weights were put back to before what was noted."""
        self._watch = FiniteWatch(self.run.device)

    def _refuse(self, info: StepInfo, batch: Any, result: StepResult, name: str) -> None:
        self.check(info.step - 1)  # weights that are lost give no finite loss
        path = self.run.dir / f"nonfinite_step_{info.step:07d}_rank{self.run.rank}.pt"
        others = set(self.run.dir.glob(f"nonfinite_step_*_rank{self.run.rank}.pt")) - {path}
        if is_kept := len(others) < MOST_KEPT:
            fields = batch._asdict() if hasattr(batch, "_asdict") else {"batch": batch}
            save_checkpoint(path, {"step": info.step, "batch": fields})
        bad = sorted(name for name, value in result.scalars.items() if not bool(value.isfinite()))
        raise NotFiniteError(
            info.step,
            f"the {name} is not finite at step {info.step} (bad: {', '.join(bad) or 'no scalar'}); "
            f"no update was made{f', the batch is in {path}' if is_kept else ''}",
            was_updated=False,
        )


@dataclass
class GuardedSteps:
    """Makes one step after the other. One whose loss or gradient is not finite leaves no trace."""

    run: Run
    loader: PrefetchingLoader
    train_step: TrainStep
    guard: FiniteGuard
    saver: Saver  # saves the run before an error ends it
    ledger: Ledger  # notes steps that are skipped
    # "stop" before steps that are not finite, "skip" them, or "rewind" to the last checkpoint and
    # skip them
    policy: str
    first_step: int  # of this process

    def __post_init__(self) -> None:
        self._rewound_to, self._rewinds = -1, 0
        # What a forward pass may change: running averages.
        self._buffers = list(self.train_step.task.buffers())

    def __call__(self, info: StepInfo) -> StepOutput | None:
        """Make a step; None where it is skipped.

        Raises: NotFiniteError where the policy does not go on; LoadingError for a batch that cannot
            be loaded, at this process's first step the error itself. The run is saved before.
        """
        batch = self._load(info.step)
        if info.step in self.ledger.skipped:
            return None
        is_checked = self.guard.checks(info.step)
        before = [buffer.clone() for buffer in self._buffers] if is_checked else []
        try:
            return self.train_step(batch, info, self.guard.before_update)
        except NotFiniteError as error:
            self._put_back(before)
            if self.policy == REWIND or error.was_updated:
                raise
            if self.policy == SKIP and not self._skips_too_many(info.step):
                self.ledger.skipped.append(info.step)
                log.warning("step %d is skipped: %s", info.step, error)
                return None
            raise self._stopped(error) from error

    def rewind(self, error: NotFiniteError) -> int:
        """Put the run back to its last checkpoint, and leave out the step of an error from then on.

        Returns: the step to go on with.
        Raises: the error, where the policy is another, or where the checkpoint was rewound to or
            steps were skipped too often; the newest checkpoint stays.
        """
        if self.policy != REWIND or self._skips_too_many(error.step):
            raise error
        self._put_back([])
        skipped = sorted({*self.ledger.skipped, error.step})
        step = self.saver.load_newest()
        self._rewinds = self._rewinds + 1 if step == self._rewound_to else 1
        self._rewound_to = step
        if self._rewinds > MOST_SKIPPED:
            raise error
        self.ledger.skipped = skipped
        self.guard.forget()
        log.warning("%s: back to step %d, step %d is skipped", error, step, error.step)
        return step

    def _load(self, step: int) -> Any:
        try:
            with self.run.together():
                return self.loader.batch_of(step)
        except Exception as error:
            if step == self.first_step:
                raise  # nothing was trained
            self.saver.save(step, is_final=True)
            raise LoadingError(
                f"step {step} cannot be loaded: {error} ({type(error).__name__}). The run is saved "
                "before this step: resume=auto goes on"
            ) from error

    def _skips_too_many(self, step: int) -> bool:
        most = min(MOST_SKIPPED, max(1, self.loader.total_steps // 2))
        return sum(step - OF <= other < step for other in self.ledger.skipped) >= most

    def _stopped(self, error: NotFiniteError) -> NotFiniteError:
        self.saver.save(error.step, is_final=True)
        self.run.record("stopped", {"step": error.step, "reason": str(error)})
        hint = "go on past it with resume=auto trainer.nonfinite=skip"
        if self.policy == SKIP:
            hint = f"up to half of the {OF} steps before it were skipped: it is not the batch"
        return NotFiniteError(
            error.step,
            f"{error}. The run is saved before this step: {hint}, or try a lower optim.lr.start, "
            "or precision 32-true",
            was_updated=False,
        )

    @torch.no_grad()
    def _put_back(self, before: list[Tensor]) -> None:
        """As if the step had not been tried."""
        for buffer, value in zip(self._buffers, before, strict=False):
            buffer.copy_(value)
        for module in self.train_step.task.modules():
            forget: Any = getattr(module, "forget_step", None)
            if forget is not None:
                forget()
        self.train_step.zero_grad()
