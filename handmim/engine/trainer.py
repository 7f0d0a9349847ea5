"""The trainer: it knows steps, devices and files, and nothing of hands. Everything random is a
function of (seed, step), and so are schedules and data order."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from handmim.engine.checkpoint import LAST
from handmim.engine.loader import PrefetchingLoader
from handmim.engine.log import Hook, RunLog, StepProgress, draw
from handmim.engine.optim import OptimizerConfig
from handmim.engine.saver import BestMetric, BestTracker, Saver
from handmim.engine.step import (
    FiniteGuard,
    NotFiniteError,
    RunningMeans,
    StepOutput,
    TrainStep,
    falls_on,
)
from handmim.engine.workers import StopSignals, Watchdog, beat, start_server
from handmim.types import Collate, Prepare, StepInfo, Task
from handmim.utils.arguments import at_least, one_of, shares
from handmim.utils.processes import DONE, FAILED, STOPPED, TRAINED, of_signal
from handmim.utils.ranks import objects_of_ranks
from handmim.utils.run import Run

log = logging.getLogger(__name__)

STOP, SKIP, REWIND = POLICIES = ("stop", "skip", "rewind")
MOST_SKIPPED, OF = 10, 20  # of so many steps; and as often one checkpoint is rewound to
HOOK, PATIENCE, STOP_AFTER = "hook", "patience", "stop_after"
EXIT_CODES = {None: DONE, HOOK: FAILED, PATIENCE: DONE, STOP_AFTER: STOPPED}


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
        code = EXIT_CODES.get(self.stopped_by)
        return of_signal(str(self.stopped_by)) if code is None else code


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Runs a task for a number of steps. Raises ValueError for settings that cannot be used."""

    max_steps: int  # optimizer steps of the whole run
    batch_size: int  # samples per step over all processes
    accumulate: int = 1  # parts of each process's batch, see `TrainStep`
    num_workers: int = 0  # loader processes per training process
    max_unreadable: float = 0.01  # share of the samples that others may stand in for
    log_every: int = 20  # steps between logged means
    image_every: int | None = None  # steps between images; None draws at the end only
    save_every: int | None = None  # steps between checkpoints; None saves at the end only
    keep_every: int | None = None  # steps between numbered copies that stay; None keeps none
    keep_last: int = 1  # newest checkpoints that stay, last.pt among them
    keep_best: str | None = None  # metric whose best checkpoint is kept, see `BestTracker`
    stop_patience: int | None = None  # validations in a row without an improvement before the end
    stop_after: int | None = None  # stop, resumable, after this many steps of this process
    extend: bool = False  # resume a run that was begun with another `max_steps`
    nonfinite: str = STOP  # steps that are not: stop before, "skip", or "rewind" to a save and skip
    check_finite_every: int | None = None  # steps between checks, see `FiniteGuard`

    def __post_init__(self) -> None:
        at_least(1, max_steps=self.max_steps, batch_size=self.batch_size)
        at_least(1, accumulate=self.accumulate, log_every=self.log_every, keep_last=self.keep_last)
        if self.check_finite_every is not None:
            at_least(1, check_finite_every=self.check_finite_every)
        one_of("nonfinite", self.nonfinite, POLICIES)
        shares(max_unreadable=self.max_unreadable)
        BestTracker(self.keep_best, self.stop_patience)

    def check_batch(self, world_size: int) -> None:
        """Raises: ValueError for a batch that does not divide by processes and parts."""
        if self.batch_size % (world_size * self.accumulate):
            parts = f"{world_size} processes and the parts of accumulate {self.accumulate}"
            raise ValueError(f"batch_size {self.batch_size} does not divide by {parts}")

    def fit(
        self,
        run: Run,
        task: Task,
        dataset: Dataset[Any],
        collate: Collate,
        prepare: Prepare,
        config: OptimizerConfig,
        *,
        hooks: Sequence[Hook] = (),
        resume: str = "never",
        meta: dict[str, Any] | None = None,
    ) -> FitResult:
        """Train on map-style samples; `prepare` as `PrefetchingLoader` takes it, `resume` is
        "never", "auto" or a checkpoint. `meta` are plain facts of every checkpoint, of which
        ..._sha256 must be the same for a run to go on. Raises: NotFiniteError; LoadingError;
        ValueError for a validation without the metric that `keep_best` names. The run is saved
        first."""
        self.check_batch(run.world_size)
        if self.num_workers:
            start_server()
        sizes = {"batch_size": self.batch_size, "seed": run.seed}
        step = TrainStep(
            run.fabric, task, config, prepare=prepare, accumulate=self.accumulate, **sizes
        )
        loader = PrefetchingLoader(
            run.fabric, dataset, collate, prepare, total_steps=self.max_steps,
            num_workers=self.num_workers, max_unreadable=self.max_unreadable, **sizes,
        )  # fmt: skip
        loop = Loop(self, run, step, loader, hooks, resume, meta or {})
        with Watchdog(run), StopSignals() as signals, loader:
            return loop.run_all(signals)


@dataclass(eq=False)
class Loop:
    """One call of `Trainer.fit`. A step whose loss or gradient is not finite leaves no trace."""

    trainer: Trainer
    run: Run
    train_step: TrainStep
    loader: PrefetchingLoader
    hooks: Sequence[Hook]
    resume: str
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        trainer, run, step = self.trainer, self.run, self.train_step
        self.task, self.ledger, self.means = step.task, self.loader.ledger, RunningMeans()
        self.best = BestTracker(trainer.keep_best, trainer.stop_patience)
        # Before a step is skipped it has to be checked.
        every = 1 if trainer.nonfinite == SKIP else trainer.check_finite_every
        self.guard = FiniteGuard(run, self.task, every)
        # What has to be the same for a run to go on. A file may move, its content not change.
        identity = {
            "seed": run.seed,
            "max_steps": trainer.max_steps,
            "batch_size": trainer.batch_size,
            "world_size": run.world_size,
            "num_samples": self.loader.batches.num_samples,
            **{k: v for k, v in self.meta.items() if k.endswith("_sha256")},
        }
        self.saver = Saver(
            run, step, self.best, self.ledger, self.guard.check, identity, self.meta,
            trainer.keep_every, trainer.keep_last,
        )  # fmt: skip
        self.step = self.saver.restore(self.resume, extend=trainer.extend)
        self.first_step = self.step  # of this process
        num = sum(p.numel() for p in self.task.parameters() if p.requires_grad)
        plan = f"{self.loader.batches.num_samples} samples, {trainer.max_steps} steps of"
        how = step.config.describe(trainer.batch_size)
        log.info("%s %s; %.2f M trainable parameters", plan, how, num / 1e6)
        self.run_log = RunLog(run.dir if run.is_main else None, self.step)
        self.progress = StepProgress(
            run.is_main, self.step, trainer.max_steps, trainer.batch_size, trainer.log_every
        )
        self.scalars: dict[str, float] = {}
        self.reason: str | None = None
        self.stopped_by: str | None = None
        self._rewound_to, self._rewinds = -1, 0
        self._buffers = list(self.task.buffers())  # such as running averages

    def run_all(self, signals: StopSignals) -> FitResult:
        """Train to the end; errors as `Trainer.fit`."""
        self.signals, total = signals, self.trainer.max_steps
        with self.progress:
            self._start()
            self.task.train()
            self.signals.is_deferred = True
            while self.step < total and self.stopped_by is None:
                try:
                    self._advance()
                except NotFiniteError as error:
                    self._rewind(error)
        if self.reason is not None:
            self.run.record("stopped", {"step": self.step, "reason": self.reason})
        if (best := self.best.best) is not None:
            log.info("best %s: %.4g after step %d", *best)
            self.run.record("best", best._asdict())
        self.run_log.close()
        self.run.fabric.barrier()
        is_early = self.step < total
        return FitResult(self.step, is_early, self.scalars, self.reason, best, self.stopped_by)

    def _start(self) -> None:
        newest = self.saver.newest
        is_last_lost = newest is not None and self.resume == "auto" and newest.name != LAST
        is_done = self.step == self.trainer.max_steps  # then no step saves it
        must_rewind = self.trainer.nonfinite == REWIND and newest is None
        if must_rewind or (is_last_lost and is_done):
            self.saver.save(self.step, is_final=True)
        if self.step == 0:
            at_start = [hook for hook in self.hooks if hook.at_start]
            self.run_log.scalars(0, self._call(at_start))
            self.stopped_by = None if self.reason is None else HOOK

    def _call(self, hooks: list[Hook]) -> dict[str, float]:
        """Scalars of hooks on the main process, and `reason`, on all processes; so are errors."""
        scalars: dict[str, float] = {}
        info, run = StepInfo(self.step, self.trainer.max_steps), self.run
        self.task.eval()
        with run.together(), torch.no_grad():
            for hook in hooks:
                beat(f"{type(hook).__name__} after step {info.step}")
                scalars |= hook(self.task, info, run)
                self.reason = self.reason or getattr(hook, "stop_reason", None)
        self.task.train()
        if run.any_rank(self.reason is not None):
            self.reason = self.reason or "stopped by another process"
        return run.fabric.broadcast(scalars)

    def _advance(self) -> None:
        """One step, and what falls on it."""
        trainer, done = self.trainer, self.step + 1
        output = self._make_step(StepInfo(self.step, trainer.max_steps))
        TRAINED.set()
        if output is not None:
            self.means.add(output.result.scalars)
        is_last = done == trainer.max_steps
        due = [hook for hook in self.hooks if is_last or falls_on(done, hook.every)]
        is_logged = is_last or falls_on(done, trainer.log_every)
        is_drawn = output is not None and (is_last or falls_on(done, trainer.image_every))
        is_saved = falls_on(done, trainer.save_every) or falls_on(done, trainer.keep_every)
        if is_logged or due or is_saved:
            self.guard.check(self.step)
        self.step, is_best = done, False
        if is_logged or due or is_drawn:
            try:
                is_best = self._between(output, due, is_logged, is_drawn)
            except Exception:
                self.saver.save(done, is_final=True)
                log.warning("stopped after step %d, go on with resume=auto", done)
                raise
        if self.progress.is_bar or is_logged:
            self.progress.show(done, self.scalars.get("loss") if is_logged else None)
        stop = self._stop(is_last)
        if is_last or stop or is_best or is_saved:
            self.saver.save(done, is_best, is_final=is_last or stop is not None)
        if is_last:
            self.stopped_by = None if self.reason is None else HOOK
        elif stop is not None:
            self.stopped_by, self.signals.is_answered = stop, True
            advice = "" if stop == PATIENCE else ", go on with resume=auto"
            log.warning("%s: stopped after step %d%s", self.reason or stop, done, advice)

    def _between(
        self, output: StepOutput | None, due: list[Hook], is_logged: bool, is_drawn: bool
    ) -> bool:
        """Hooks, scalars and images after a step; whether it gave the best validation."""
        hooked = self._call(due) if due else {}
        if is_logged:
            of_step = {} if output is None else output.scalars
            self.scalars = self.means.take() | {k: float(v) for k, v in of_step.items()}
            images_per_s = self.progress.rate(self.step) * self.trainer.batch_size
            self.scalars |= {**self.ledger.scalars(), "speed/images_per_s": images_per_s}
        self.run_log.scalars(self.step, (self.scalars if is_logged else {}) | hooked)
        if is_drawn and output is not None:
            with self.run.together():
                if self.run.is_main:
                    images = draw(self.task, output.batch, self.hooks, self.run)
                    self.run_log.images(self.step, images)
        return bool(due) and self.best.update(self.step, hooked)

    def _stop(self, is_last: bool) -> str | None:
        """What ends the run after this step; the same on all processes."""
        if self.reason is not None:
            return HOOK
        if self.best.reason is not None and not is_last:
            self.reason = self.best.reason
            return PATIENCE
        if self.run.any_rank(self.signals.received is not None):
            return next(filter(None, objects_of_ranks(self.signals.received)))
        is_enough = self.step - self.first_step == self.trainer.stop_after
        return STOP_AFTER if is_enough else None

    def _make_step(self, info: StepInfo) -> StepOutput | None:
        """Load and make a step; None where it is skipped."""
        try:
            with self.run.together() if self.run.world_size > 1 else nullcontext():
                batch = self.loader.batch_of(info.step)
        except Exception as error:
            if info.step == self.first_step:
                raise  # nothing was trained
            self.saver.save(info.step, is_final=True)
            text = f"step {info.step} cannot be loaded: {error} ({type(error).__name__}). The run"
            raise LoadingError(f"{text} is saved before this step: resume=auto goes on") from error
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
            hint = "go on past it with resume=auto trainer.nonfinite=skip"
            if policy == SKIP and not self._skips_too_many(info.step):
                self.ledger.skipped.append(info.step)
                log.warning("step %d is skipped: %s", info.step, error)
                return None
            if policy == SKIP:
                hint = f"up to half of the {OF} steps before it were skipped: it is not the batch"
            self.saver.save(error.step, is_final=True)
            self.run.record("stopped", {"step": error.step, "reason": str(error)})
            text = f"{error}. The run is saved before this step: {hint}, or try a lower "
            text += "optim.lr.start, or precision 32-true"
            raise NotFiniteError(error.step, text, was_updated=False) from error

    def _rewind(self, error: NotFiniteError) -> None:
        """Put the run back to its last checkpoint, and leave out the step of an error from then on;
        raise it under another policy, or after too many."""
        if self.trainer.nonfinite != REWIND or self._skips_too_many(error.step):
            raise error
        self._put_back([])
        skipped = sorted({*self.ledger.skipped, error.step})
        self.step = self.saver.go_back()
        self._rewinds = self._rewinds + 1 if self.step == self._rewound_to else 1
        if self._rewinds > MOST_SKIPPED:
            raise error
        self._rewound_to, self.ledger.skipped = self.step, skipped
        self.guard.forget()
        log.warning("%s: back to step %d, step %d is skipped", error, self.step, error.step)
        self.reason, self.means = None, RunningMeans()
        self.run_log.close()
        self.run_log = RunLog(self.run_log.folder, self.step)

    def _skips_too_many(self, step: int) -> bool:
        most = min(MOST_SKIPPED, max(1, self.trainer.max_steps // 2))
        return sum(step - OF <= other < step for other in self.ledger.skipped) >= most

    @torch.no_grad()
    def _put_back(self, before: list[Tensor]) -> None:
        """As if the step had not been tried."""
        for buffer, value in zip(self._buffers, before, strict=False):
            buffer.copy_(value)
        for module in self.task.modules():
            if forget := getattr(module, "forget_step", None):
                forget()
        self.train_step.optimizer.zero_grad()
