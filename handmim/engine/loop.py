"""Step after step of a run, with what is logged, saved and done between."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from handmim.engine.checkpoint import LAST
from handmim.engine.loader import PrefetchingLoader
from handmim.engine.log import Hook, RunLog, StepProgress, call_hooks, draw
from handmim.engine.saver import BestMetric, BestRule, Saver
from handmim.engine.step import (
    FiniteGuard,
    NotFiniteError,
    RunningMeans,
    StepOutput,
    TrainStep,
    falls_on,
)
from handmim.engine.stop import StopSignals
from handmim.types import StepInfo
from handmim.utils import processes
from handmim.utils.arguments import at_least, one_of, shares
from handmim.utils.ranks import objects_of_ranks
from handmim.utils.run import Run

log = logging.getLogger(__name__)

STOP, SKIP, REWIND = POLICIES = ("stop", "skip", "rewind")
MOST_SKIPPED, OF = 10, 20  # of so many steps; and as often one checkpoint is rewound to
HOOK, PATIENCE, STOP_AFTER = "hook", "patience", "stop_after"
EXIT_CODES = {
    None: processes.DONE,
    HOOK: processes.FAILED,
    PATIENCE: processes.DONE,
    STOP_AFTER: processes.STOPPED,
}


class LoadingError(RuntimeError):
    """A batch could not be loaded in the middle of a run, which was saved."""


class FitResult(NamedTuple):
    """How training ended."""

    step: int
    interrupted: bool
    scalars: dict[str, float]
    reason: str | None = None  # why a hook, or a metric that did not improve, stopped it
    best: BestMetric | None = None  # what best.pt was kept for
    stopped_by: str | None = None  # a signal's name, or a key of `EXIT_CODES`

    @property
    def exit_code(self) -> int:
        """Of an entry point: 0 for a finished run, as one without further improvement is."""
        if self.stopped_by in EXIT_CODES:
            return EXIT_CODES[self.stopped_by]
        return processes.of_signal(str(self.stopped_by))


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Raises ValueError for settings that cannot be used."""

    max_steps: int  # optimizer steps of the whole run
    batch_size: int  # samples per step over all processes
    accumulate: int = 1  # parts of each process's batch, see `step.TrainStep`
    num_workers: int = 0  # loader processes per training process
    max_unreadable: float = 0.01  # share of the samples that others may stand in for
    log_every: int = 20  # steps between logged means
    image_every: int | None = None  # steps between images; None draws at the end only
    save_every: int | None = None  # steps between checkpoints; None saves at the end only
    keep_every: int | None = None  # steps between numbered copies that stay; None keeps none
    keep_last: int = 1  # newest checkpoints that stay, last.pt among them
    keep_best: str | None = None  # metric whose best checkpoint is kept, see `saver.BestRule`
    stop_patience: int | None = None  # validations in a row without an improvement before the end
    stop_after: int | None = None  # stop, resumable, after this many steps of this process
    extend: bool = False  # resume a run that was begun with another `max_steps`
    # "stop" before steps that are not finite, "skip" them, or "rewind" to the last checkpoint and
    # skip them
    nonfinite: str = STOP
    check_finite_every: int | None = None  # steps between checks, see `step.FiniteGuard`

    def __post_init__(self) -> None:
        at_least(1, max_steps=self.max_steps, batch_size=self.batch_size)
        at_least(1, accumulate=self.accumulate, log_every=self.log_every, keep_last=self.keep_last)
        if self.check_finite_every is not None:
            at_least(1, check_finite_every=self.check_finite_every)
        one_of("nonfinite", self.nonfinite, POLICIES)
        shares(max_unreadable=self.max_unreadable)
        BestRule(self.keep_best, self.stop_patience)


@dataclass
class Loop:
    """One call of `Trainer.fit`. A step whose loss or gradient is not finite leaves no trace."""

    trainer: LoopSettings
    run: Run
    train_step: TrainStep
    guard: FiniteGuard
    saver: Saver
    loader: PrefetchingLoader
    signals: StopSignals
    hooks: Sequence[Hook]
    first_step: int  # of this process

    def __post_init__(self) -> None:
        trainer, self.step, self.task = self.trainer, self.first_step, self.train_step.task
        self.run_log = RunLog(self.run.dir if self.run.is_main else None, self.step)
        self.progress = StepProgress(
            self.run.is_main, self.step, trainer.max_steps, trainer.batch_size, trainer.log_every
        )
        self.has_bar = self.progress.is_bar
        is_alone = self.run.world_size == 1
        self.any_rank: Callable[[bool], bool] = bool if is_alone else self.run.any_rank
        self.together: Any = nullcontext if is_alone else self.run.together
        self.means, self.scalars = RunningMeans(), dict[str, float]()
        self.ledger, self.best = self.saver.ledger, self.saver.best
        self.reason: str | None = None
        self.stopped_by: str | None = None
        self._rewound_to, self._rewinds = -1, 0
        self._buffers = list(self.task.buffers())  # such as running averages

    def run_all(self, resume: str) -> FitResult:
        """Train to the end; arguments and errors as `Trainer.fit`."""
        with self.progress:
            self._start(resume)
            self.task.train()
            self.signals.is_deferred = True
            while self.step < self.trainer.max_steps and self.stopped_by is None:
                try:
                    self._advance()
                except NotFiniteError as error:
                    self._rewind(error)
        if self.reason is not None:
            self.run.record("stopped", {"step": self.step, "reason": self.reason})
        best = self.best.best
        if best is not None:
            log.info("best %s: %.4g after step %d", *best)
            self.run.record("best", best._asdict())
        self.run_log.close()
        self.run.fabric.barrier()
        is_early = self.step < self.trainer.max_steps
        return FitResult(self.step, is_early, self.scalars, self.reason, best, self.stopped_by)

    def _start(self, resume: str) -> None:
        newest = self.saver.newest
        is_last_lost = newest is not None and resume == "auto" and newest.name != LAST
        is_done = self.step == self.trainer.max_steps  # then no step saves it
        must_rewind = self.trainer.nonfinite == REWIND and newest is None
        if must_rewind or (is_last_lost and is_done):
            self.saver.save(self.step, is_final=True)
        if self.step == 0:
            at_start = [hook for hook in self.hooks if hook.at_start]
            info = StepInfo(0, self.trainer.max_steps)
            scalars, self.reason = call_hooks(at_start, self.task, info, self.run)
            self.run_log.scalars(0, scalars)
            self.stopped_by = None if self.reason is None else HOOK

    def _advance(self) -> None:
        """One step, and what falls on it."""
        trainer, total = self.trainer, self.trainer.max_steps
        output = self._make_step(StepInfo(self.step, total))
        processes.TRAINED.set()
        if output is not None:
            self.means.add(output.result.scalars)
        done, is_last = self.step + 1, self.step + 1 == total
        due = [hook for hook in self.hooks if is_last or falls_on(done, hook.every)]
        is_logged = is_last or falls_on(done, trainer.log_every)
        is_drawn = output is not None and (is_last or falls_on(done, trainer.image_every))
        is_saved = falls_on(done, trainer.save_every) or falls_on(done, trainer.keep_every)
        if is_logged or due or is_saved:
            self.guard.check(self.step)
        self.step = done
        is_best = False
        if is_logged or due or is_drawn:
            with self.saver.saved_first(done):
                is_best = self._between(output, due, is_logged, is_drawn)
        if self.has_bar or is_logged:
            self.progress.show(done, self.scalars.get("loss") if is_logged else None)
        stop = self._stop(bool(due), is_last)
        if is_last or stop or is_best or is_saved:
            self.saver.save(done, is_best, is_final=is_last or stop is not None)
        if is_last:
            self.stopped_by = None if self.reason is None else HOOK
        elif stop is not None:
            self.stopped_by = stop
            self.signals.is_answered = True
            advice = "" if stop == PATIENCE else ", go on with resume=auto"
            log.warning("%s: stopped after step %d%s", self.reason or stop, done, advice)

    def _between(
        self, output: StepOutput | None, due: list[Hook], is_logged: bool, is_drawn: bool
    ) -> bool:
        """Hooks, scalars and images after a step; whether it gave the best validation."""
        hooked: dict[str, float] = {}
        if due:
            info = StepInfo(self.step, self.trainer.max_steps)
            hooked, self.reason = call_hooks(due, self.task, info, self.run)
        if is_logged:
            of_step = {} if output is None else output.scalars
            self.scalars = self.means.take() | {k: float(v) for k, v in of_step.items()}
            self.scalars |= self.ledger.scalars()
            self.scalars["speed/images_per_s"] = self.progress.images_per_s(self.step)
        self.run_log.scalars(self.step, (self.scalars if is_logged else {}) | hooked)
        if is_drawn and output is not None:
            with self.run.together():
                if self.run.is_main:
                    images = draw(self.task, output.batch, self.hooks, self.run)
                    self.run_log.images(self.step, images)
        return bool(due) and self.best.update(self.step, hooked)

    def _stop(self, is_validated: bool, is_last: bool) -> str | None:
        """What ends the run after this step; the same on all processes."""
        if self.reason is not None:
            return HOOK
        if is_validated and not is_last and self.best.reason is not None:
            self.reason = self.best.reason
            return PATIENCE
        if self.any_rank(self.signals.received is not None):
            return next(filter(None, objects_of_ranks(self.signals.received)))
        if self.step - self.first_step == self.trainer.stop_after:
            return STOP_AFTER
        return None

    def _make_step(self, info: StepInfo) -> StepOutput | None:
        """Load and make a step; None where it is skipped."""
        batch = self._load(info.step)
        if info.step in self.ledger.skipped:
            return None
        is_checked = falls_on(info.step, self.guard.every)
        before = [buffer.clone() for buffer in self._buffers] if is_checked else []
        try:
            return self.train_step(batch, info, self.guard.before_update)
        except NotFiniteError as error:
            self._put_back(before)
            policy = self.trainer.nonfinite
            if policy == REWIND or error.was_updated:
                raise
            if policy == SKIP and not self._skips_too_many(info.step):
                self.ledger.skipped.append(info.step)
                log.warning("step %d is skipped: %s", info.step, error)
                return None
            raise self._stopped(error) from error

    def _load(self, step: int) -> Any:
        try:
            with self.together():
                return self.loader.batch_of(step)
        except Exception as error:
            if step == self.first_step:
                raise  # nothing was trained
            self.saver.save(step, is_final=True)
            raise LoadingError(
                f"step {step} cannot be loaded: {error} ({type(error).__name__}). The run is saved "
                "before this step: resume=auto goes on"
            ) from error

    def _rewind(self, error: NotFiniteError) -> None:
        """Put the run back to its last checkpoint, and leave out the step of an error from then on;
        raise it under another policy, or after too many rewinds or skipped steps."""
        if self.trainer.nonfinite != REWIND or self._skips_too_many(error.step):
            raise error
        self._put_back([])
        skipped = sorted({*self.ledger.skipped, error.step})
        step = self.saver.go_back()
        self._rewinds = self._rewinds + 1 if step == self._rewound_to else 1
        self._rewound_to = step
        if self._rewinds > MOST_SKIPPED:
            raise error
        self.ledger.skipped = skipped
        self.guard.forget()
        log.warning("%s: back to step %d, step %d is skipped", error, step, error.step)
        self.step, self.reason, self.means = step, None, RunningMeans()
        self.run_log.close()
        self.run_log = RunLog(self.run_log.folder, step)

    def _skips_too_many(self, step: int) -> bool:
        most = min(MOST_SKIPPED, max(1, self.trainer.max_steps // 2))
        return sum(step - OF <= other < step for other in self.ledger.skipped) >= most

    def _stopped(self, error: NotFiniteError) -> NotFiniteError:
        self.saver.save(error.step, is_final=True)
        self.run.record("stopped", {"step": error.step, "reason": str(error)})
        hint = "go on past it with resume=auto trainer.nonfinite=skip"
        if self.trainer.nonfinite == SKIP:
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
        for module in self.task.modules():
            forget: Any = getattr(module, "forget_step", None)
            if forget is not None:
                forget()
        self.train_step.zero_grad()
