"""The training loop: it knows steps, devices and files, and nothing of hands.

Everything random is a function of (seed, step), and so are schedules and data order: an interrupted
and resumed run equals an uninterrupted one.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import Dataset

from handmim.engine.best import BestMetric, BestRule, BestTracker
from handmim.engine.checkpoint import LAST
from handmim.engine.hooks import Hook, call_hooks, draw
from handmim.engine.log import RunLog, RunningMeans, StepProgress
from handmim.engine.nonfinite import (
    POLICIES,
    REWIND,
    SKIP,
    STOP,
    FiniteGuard,
    GuardedSteps,
    NotFiniteError,
)
from handmim.engine.optim import OptimizerConfig
from handmim.engine.prefetch import Collate, Ledger, PrefetchingLoader
from handmim.engine.saver import Saver, falls_on
from handmim.engine.signals import StopSignals
from handmim.engine.step import Prepare, StepOutput, TrainStep
from handmim.engine.workers import Watchdog, start_server
from handmim.types import StepInfo
from handmim.utils import processes
from handmim.utils.arguments import at_least, one_of, shares
from handmim.utils.processes import TRAINED
from handmim.utils.ranks import objects_of_ranks
from handmim.utils.run import Run

log = logging.getLogger(__name__)

HOOK, PATIENCE, STOP_AFTER = "hook", "patience", "stop_after"
EXIT_CODES = {
    None: processes.DONE,
    HOOK: processes.FAILED,
    PATIENCE: processes.DONE,
    STOP_AFTER: processes.STOPPED,
}


class FitResult(NamedTuple):
    """How training ended."""

    step: int
    seconds: float
    images_per_s: float
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
class Trainer:
    """Runs a task for a number of steps. Raises ValueError for settings that cannot be used."""

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
    keep_best: str | None = None  # metric whose best checkpoint is kept, see `best.BestRule`
    stop_patience: int | None = None  # validations in a row without an improvement before the end
    stop_after: int | None = None  # stop, resumable, after this many steps of this process
    extend: bool = False  # resume a run that was begun with another `max_steps`
    nonfinite: str = STOP  # policy for steps that are not finite, see `nonfinite.GuardedSteps`
    check_finite_every: int | None = None  # steps between checks, see `nonfinite.FiniteGuard`

    def __post_init__(self) -> None:
        at_least(1, max_steps=self.max_steps, batch_size=self.batch_size)
        at_least(1, accumulate=self.accumulate, log_every=self.log_every, keep_last=self.keep_last)
        if self.check_finite_every is not None:
            at_least(1, check_finite_every=self.check_finite_every)
        one_of("nonfinite", self.nonfinite, POLICIES)
        shares(max_unreadable=self.max_unreadable)
        self.best_rule()

    def best_rule(self) -> BestRule:
        """Which checkpoint is kept as the best, and when to stop."""
        return BestRule(self.keep_best, self.stop_patience)

    def check_batch(self, world_size: int) -> None:
        """Raises: ValueError for a batch that does not divide by processes and parts."""
        if self.batch_size % (world_size * self.accumulate):
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by {world_size} processes and the "
                f"parts of accumulate {self.accumulate}"
            )

    def fit(
        self,
        run: Run,
        task: nn.Module,
        dataset: Dataset[Any],
        collate: Collate,
        prepare: Prepare,
        config: OptimizerConfig,
        *,
        hooks: Sequence[Hook] = (),
        resume: str = "never",
        meta: dict[str, Any] | None = None,
    ) -> FitResult:
        """Train.

        Args:
            run: devices and folder.
            task: module whose forward is one training step (types.Task).
            dataset: map-style samples.
            collate: samples -> batch.
            prepare: batch on the device -> augmented batch; draws from the generator only. Its
                `host_part`, where it has one, is done before (`prefetch.HostPrepare`).
            config: of the optimizer and its schedules.
            hooks: run now and then, on all processes.
            resume: "never", "auto" or a checkpoint.
            meta: plain facts kept in every checkpoint; those named ..._sha256 must be the same for
                a run to go on.
        Returns: FitResult; `interrupted` when a signal, `stop_after`, a hook or `stop_patience`
            ended it early.
        Raises: NotFiniteError for a loss that is not finite; LoadingError for a batch that cannot
            be loaded; ValueError for a validation without the metric that `keep_best` names. The
            run is saved first.
        """
        self.check_batch(run.world_size)
        if self.num_workers:
            start_server()
        best, ledger, meta = BestTracker(self.best_rule()), Ledger(), meta or {}
        sizes = {"batch_size": self.batch_size, "seed": run.seed}
        step = TrainStep(
            run.fabric, task, config, prepare=prepare, accumulate=self.accumulate, **sizes
        )
        # Before a step is skipped it has to be checked.
        guard = FiniteGuard(run, task, 1 if self.nonfinite == SKIP else self.check_finite_every)
        identity = self._identity(run, dataset, meta)
        saver = Saver(
            run, task, step.optimizer, best, ledger, guard.check, identity, meta,
            save_every=self.save_every, keep_every=self.keep_every, keep_last=self.keep_last,
        )  # fmt: skip
        first_step = saver.restore(resume, extend=self.extend)
        log.info(
            "%d samples, %d steps of %d, %s; %.2f M trainable parameters",
            identity["num_samples"],
            self.max_steps,
            self.batch_size,
            config.describe(self.batch_size),
            sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6,
        )
        loader = PrefetchingLoader(
            run.fabric, dataset, collate, prepare, total_steps=self.max_steps, ledger=ledger,
            num_workers=self.num_workers, max_unreadable=self.max_unreadable, **sizes,
        )  # fmt: skip
        steps = GuardedSteps(
            run, loader, step, guard, saver, ledger, policy=self.nonfinite, first_step=first_step
        )
        with Watchdog(run), StopSignals() as signals, loader:
            return _Loop(self, run, steps, signals, hooks).run_all(resume)

    def _identity(self, run: Run, dataset: Dataset[Any], meta: dict[str, Any]) -> dict[str, Any]:
        """What has to be the same for a run to go on. A file may move, its content not change."""
        return {
            "seed": run.seed,
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "world_size": run.world_size,
            "num_samples": len(dataset),  # type: ignore[arg-type]
            **{k: v for k, v in meta.items() if k.endswith("_sha256")},
        }


class _Loop:
    """One call of `Trainer.fit`: step after step, with what is logged, saved and done between."""

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        steps: GuardedSteps,
        signals: StopSignals,
        hooks: Sequence[Hook],
    ) -> None:
        self.trainer, self.run, self.steps = trainer, run, steps
        self.signals, self.hooks, self.saver = signals, hooks, steps.saver
        self.task, self.best = steps.train_step.task, steps.saver.best
        self.step = steps.first_step
        self.run_log = RunLog(run.dir if run.is_main else None, first_step=self.step)
        self.progress = StepProgress(
            run.is_main, self.step, trainer.max_steps, trainer.batch_size, trainer.log_every
        )
        self.means, self.scalars = RunningMeans(), dict[str, float]()
        self.reason: str | None = None
        self.stopped_by: str | None = None

    def run_all(self, resume: str) -> FitResult:
        began = time.perf_counter()
        with self.progress:
            self._start(resume)
            self.task.train()
            self.signals.defer()
            while self.step < self.trainer.max_steps and self.stopped_by is None:
                try:
                    self._advance()
                except NotFiniteError as error:
                    self.step, self.reason = self.steps.rewind(error), None
                    self.run_log, self.means = self.run_log.again(self.step), RunningMeans()
        if self.reason is not None:
            self.run.record("stopped", {"step": self.step, "reason": self.reason})
        best = self.best.best
        if best is not None:
            log.info("best %s: %.4g after step %d", *best)
            self.run.record("best", best._asdict())
        self.run_log.close()
        seconds = time.perf_counter() - began
        self.run.fabric.barrier()
        rate, is_early = self.progress.images_per_s(self.step), self.step < self.trainer.max_steps
        end = self.scalars, self.reason, best, self.stopped_by
        return FitResult(self.step, seconds, rate, is_early, *end)

    def _start(self, resume: str) -> None:
        newest = self.saver.newest
        is_last_lost = newest is not None and resume == "auto" and newest.name != LAST
        if is_last_lost and self.step == self.trainer.max_steps:
            self.saver.save(self.step, is_final=True)  # no step does it
        if self.trainer.nonfinite == REWIND and newest is None:
            self.saver.save(self.step, is_final=True)  # something to rewind to
        if self.step == 0:
            at_start = [hook for hook in self.hooks if hook.at_start]
            info = StepInfo(0, self.trainer.max_steps)
            scalars, self.reason = call_hooks(at_start, self.task, info, self.run)
            self.run_log.scalars(0, scalars)
            self.stopped_by = None if self.reason is None else HOOK

    def _advance(self) -> None:
        """One step, and what falls on it."""
        trainer, total = self.trainer, self.trainer.max_steps
        output = self.steps(StepInfo(self.step, total))
        TRAINED.set()
        if output is not None:
            self.means.add(output.result.scalars)
        is_last = self.step + 1 == total
        due = [hook for hook in self.hooks if is_last or falls_on(self.step + 1, hook.every)]
        is_logged = is_last or falls_on(self.step + 1, trainer.log_every)
        if is_logged or due or self.saver.is_due(self.step + 1):
            self.steps.guard.check(self.step)
        self.step += 1
        is_best = False
        with self.saver.saved_first(self.step):
            hooked: dict[str, float] = {}
            if due:
                info = StepInfo(self.step, total)
                hooked, self.reason = call_hooks(due, self.task, info, self.run)
            self._log(output, hooked, is_logged)
            if output is not None and (is_last or falls_on(self.step, trainer.image_every)):
                with self.run.together():
                    if self.run.is_main:
                        images = draw(self.task, output.batch, self.hooks, self.run)
                        self.run_log.images(self.step, images)
            if due:
                is_best = self.best.update(self.step, hooked)
        stop = self._stop(bool(due), is_last)
        if is_last or stop or is_best or self.saver.is_due(self.step):
            self.saver.save(self.step, is_best, is_final=is_last or stop is not None)
        if is_last:
            self.stopped_by = None if self.reason is None else HOOK
        elif stop is not None:
            self.stopped_by = stop
            self.signals.answer()
            advice = "" if stop == PATIENCE else ", go on with resume=auto"
            log.warning("%s: stopped after step %d%s", self.reason or stop, self.step, advice)

    def _log(self, output: StepOutput | None, hooked: dict[str, float], is_logged: bool) -> None:
        if is_logged:
            of_step = {} if output is None else output.scalars
            self.scalars = self.means.take() | {k: float(v) for k, v in of_step.items()}
            self.scalars |= self.steps.ledger.scalars()
            self.scalars["speed/images_per_s"] = self.progress.images_per_s(self.step)
        self.run_log.scalars(self.step, (self.scalars if is_logged else {}) | hooked)
        self.progress.show(self.step, self.scalars.get("loss") if is_logged else None)

    def _stop(self, is_validated: bool, is_last: bool) -> str | None:
        """What ends the run after this step; the same on all processes."""
        if self.reason is not None:
            return HOOK
        if is_validated and not is_last and self.best.reason is not None:
            self.reason = self.best.reason
            return PATIENCE
        if self.run.any_rank(self.signals.received is not None):
            return next(filter(None, objects_of_ranks(self.signals.received)))
        if self.step - self.steps.first_step == self.trainer.stop_after:
            return STOP_AFTER
        return None
