"""Training steps: batch by batch, and what happens to one that cannot be taken."""

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handmim.engine.finite import FiniteGuard, NotFiniteError
from handmim.engine.ledger import Ledger
from handmim.engine.prefetch import PrefetchingLoader, Prepare
from handmim.engine.saving import Saver
from handmim.engine.update import Updater
from handmim.types import StepInfo, StepResult
from handmim.utils.run import Run
from handmim.utils.seed import step_generator, step_seed

log = logging.getLogger(__name__)

STOP, SKIP, REWIND = POLICIES = ("stop", "skip", "rewind")
MOST_SKIPPED, OF = 10, 20  # of so many steps; and as often one checkpoint is rewound to


class LoadingError(RuntimeError):
    """A batch could not be loaded in the middle of a run, which was saved."""


class Taken(NamedTuple):
    """A step that was made."""

    batch: Any  # as the task saw it
    result: StepResult
    extra: dict[str, Any]  # further scalars


class Steps:
    """Makes one step after the other. One whose loss or gradient is not finite leaves no trace.

    Args:
        run: devices and folder.
        task: the module that is trained.
        feed: gives batches.
        updater: makes updates.
        guard: looks at them.
        prepare: of the training loop.
        saver: saves the run before an error ends it.
        ledger: notes steps that are skipped.
        policy: for steps that are not finite: "stop" before them, "skip" them, or "rewind" to the
            last checkpoint and skip them.
        first_step: of this process.
    """

    def __init__(
        self,
        run: Run,
        task: nn.Module,
        feed: PrefetchingLoader,
        updater: Updater,
        guard: FiniteGuard,
        prepare: Prepare,
        saver: Saver,
        ledger: Ledger,
        *,
        policy: str,
        first_step: int,
    ) -> None:
        self.run, self.task, self.feed, self.updater = run, task, feed, updater
        self.guard, self.prepare, self.saver, self.ledger = guard, prepare, saver, ledger
        self.policy, self.first_step = policy, first_step
        self._rewound_to, self._rewinds = -1, 0
        self._buffers = list(task.buffers())  # what a forward pass may change: running averages

    def take(self, info: StepInfo) -> Taken | None:
        """Make a step; None where it is skipped.

        Raises: NotFiniteError where the policy does not go on; LoadingError for a batch that cannot
            be loaded, at this process's first step the error itself. The run is saved before.
        """
        loaded = self._load(info.step)
        if info.step in self.ledger.skipped:
            return None
        checked = self.guard.checks(info.step)
        before = [buffer.clone() for buffer in self._buffers] if checked else []
        try:
            return self._make(loaded, info)
        except NotFiniteError as error:
            self._put_back(before)
            if self.policy == REWIND or error.was_updated:
                raise
            if self.policy == SKIP and not self._skips_too_many(info.step):
                self.ledger.skipped.append(info.step)
                log.warning("step %d is skipped: %s", info.step, error)
                return None
            raise self._stopped(error) from error

    def _skips_too_many(self, step: int) -> bool:
        most = min(MOST_SKIPPED, max(1, self.feed.steps.end_step // 2))
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

    def _load(self, step: int) -> Any:
        try:
            with self.run.together():
                return self.feed.batch_of(step)
        except Exception as error:
            if step == self.first_step:
                raise  # nothing was trained
            self.saver.save(step, is_final=True)
            raise LoadingError(
                f"step {step} cannot be loaded: {error} ({type(error).__name__}). The run is saved "
                "before this step: resume=auto goes on"
            ) from error

    def _make(self, loaded: Any, info: StepInfo) -> Taken:
        """One update: augmentation, loss, backward, clip, optimizer."""
        extra: dict[str, Any] = dict(self.updater.schedule(info))
        # Dropout and stochastic depth have no generator argument: the global one is set by step
        # instead.
        torch.manual_seed(step_seed(self.run.seed, "step", info.step, self.run.rank))
        generator = step_generator(self.run.seed, "prepare", info.step, self.run.rank)
        batch = self.prepare(loaded, generator, info)
        result = self.updater.backward(batch, info)
        norm = self.updater.clip()
        if norm is not None:
            extra["gradient_norm"] = norm
        self.guard.before_update(info, batch, result, norm)
        self.updater.update()
        extra |= self.task.after_step(info)  # type: ignore[operator]
        return Taken(batch, result, extra)

    @torch.no_grad()
    def _put_back(self, before: list[Tensor]) -> None:
        """As if the step had not been tried."""
        for buffer, value in zip(self._buffers, before, strict=False):
            buffer.copy_(value)
        for module in self.task.modules():
            forget: Any = getattr(module, "forget_step", None)
            if forget is not None:
                forget()
        self.updater.forget()

    def rewind(self, error: NotFiniteError) -> int:
        """Put the run back to its last checkpoint, with the step of an error left out from then on.

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
