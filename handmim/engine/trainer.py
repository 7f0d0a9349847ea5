"""The training loop: it knows steps, devices and files, and nothing of hands.

Everything random is a function of (seed, step), and so are schedules and data order: an interrupted
and resumed run equals an uninterrupted one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import Dataset

from handmim.engine.best import Best, BestFigure, BestRule
from handmim.engine.checkpoint import LAST
from handmim.engine.finite import FiniteGuard, NotFiniteError
from handmim.engine.hooks import Hook, call_hooks, drawn
from handmim.engine.ledger import Ledger
from handmim.engine.log import ProgressLine, RunLog, RunningMeans
from handmim.engine.optim import OptimizerConfig
from handmim.engine.prefetch import PrefetchingLoader, Prepare
from handmim.engine.sampler import StepSampler
from handmim.engine.saving import Saver, falls_on, restore
from handmim.engine.signals import StopSignals
from handmim.engine.steps import POLICIES, REWIND, SKIP, STOP, Steps
from handmim.engine.update import Updater
from handmim.engine.watchdog import Watchdog
from handmim.engine.workers import start_server
from handmim.types import StepInfo
from handmim.utils import processes
from handmim.utils.processes import TRAINED, of_signal
from handmim.utils.ranks import objects_of_ranks
from handmim.utils.run import Run

log = logging.getLogger(__name__)


ENDS = {"hook": processes.FAILED, "patience": processes.DONE, "stop_after": processes.STOPPED}


class FitResult(NamedTuple):
    """How training ended."""

    step: int
    seconds: float
    images_per_s: float
    interrupted: bool
    scalars: dict[str, float]
    reason: str | None = None  # why a hook, or a figure that did not improve, stopped it
    best: BestFigure | None = None  # what best.pt was kept for
    stopped_by: str | None = None  # a signal's name, or one of `ENDS`

    @property
    def exit_code(self) -> int:
        """Of an entry point: 0 for a run that is finished, as one without further improvement
        is."""
        if self.stopped_by is None:
            return processes.DONE
        return ENDS[self.stopped_by] if self.stopped_by in ENDS else of_signal(self.stopped_by)


class Trainer:
    """Runs a task for a number of steps.

    Args:
        max_steps: optimizer steps of the whole run.
        batch_size: samples per step over all processes.
        num_workers: loader processes per training process; they compete with torch's threads for
            cores.
        log_every: steps between logged means.
        save_every: steps between checkpoints; None saves at the end only.
        keep_every: steps between numbered copies that stay; None keeps the last only.
        keep_last: newest checkpoints that stay, last.pt among them, see `saving.Saver`.
        image_every: steps between images; None draws at the end only.
        check_finite_every: steps between checks of loss and gradient norm before the update, see
            `finite.FiniteGuard`.
        nonfinite: what to do about a step whose loss or gradient is not finite, see `steps.Steps`:
            "stop", "skip" (every step is checked) or "rewind".
        max_unreadable: share of the samples that others may stand in for, see `prefetch`.
        accumulate: parts that each process works its batch off in, see `update.Updater`.
        stop_after: stop, resumable, after this many steps of this process.
        extend: resume a run that was begun with another `max_steps`, see `saving.restore`.
        keep_best: validation figure whose best checkpoint is kept, see `BestRule`; a checkpoint is
            written whenever it improves.
        stop_patience: validations in a row without an improvement before the run stops, resumable;
            the main process counts them for all.
    """

    def __init__(
        self,
        *,
        max_steps: int,
        batch_size: int,
        num_workers: int = 0,
        log_every: int = 20,
        save_every: int | None = None,
        keep_every: int | None = None,
        image_every: int | None = None,
        check_finite_every: int | None = None,
        nonfinite: str = STOP,
        max_unreadable: float = 0.01,
        accumulate: int = 1,
        stop_after: int | None = None,
        keep_last: int = 1,
        extend: bool = False,
        keep_best: str | None = None,
        stop_patience: int | None = None,
    ) -> None:
        for name, value in (
            ("max_steps", max_steps),
            ("batch_size", batch_size),
            ("log_every", log_every),
            ("check_finite_every", check_finite_every),
            ("accumulate", accumulate),
            ("keep_last", keep_last),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value} (trainer.{name})")
        if nonfinite not in POLICIES:
            raise ValueError(
                f"nonfinite must be one of {POLICIES}, got {nonfinite!r} (trainer.nonfinite)"
            )
        if not 0 <= max_unreadable <= 1:
            raise ValueError(
                f"max_unreadable is a share, got {max_unreadable} (trainer.max_unreadable)"
            )
        self.nonfinite, self.max_unreadable = nonfinite, max_unreadable
        self.max_steps, self.batch_size, self.num_workers = max_steps, batch_size, num_workers
        self.log_every, self.save_every, self.keep_every = log_every, save_every, keep_every
        self.image_every, self.check_finite_every = image_every, check_finite_every
        self.accumulate, self.stop_after = accumulate, stop_after
        self.keep_last, self.extend = keep_last, extend
        self.best_rule = BestRule(keep_best, stop_patience)

    def check_batch(self, world_size: int) -> None:
        """Raises: ValueError for a batch that does not divide by processes and parts."""
        if self.batch_size % (world_size * self.accumulate):
            raise ValueError(
                f"a batch of {self.batch_size} does not divide by {world_size} processes and "
                f"{self.accumulate} parts (trainer.batch_size, trainer.accumulate)"
            )

    def fit(
        self,
        run: Run,
        task: nn.Module,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        prepare: Prepare,
        recipe: OptimizerConfig,
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
            prepare: batch on the device -> augmented batch; draws from the generator only. What
                it can do before is its `host_part` (`prefetch.HostPrepare`).
            recipe: optimizer and its schedules.
            hooks: run now and then, on all processes.
            resume: "never", "auto" or a checkpoint.
            meta: plain facts kept in every checkpoint; those named ..._sha256 must be the same for
                a run to go on.
        Returns: FitResult; `interrupted` when a signal, `stop_after`, a hook or `stop_patience`
            ended it early.
        Raises: NotFiniteError for a loss that is not finite; LoadingError for a batch that cannot
            be loaded, see `steps.Steps.take`; ValueError for a validation without the figure that
            `keep_best` names. The run is saved first.
        """
        identity = self._identity(run, dataset, meta or {})
        self.check_batch(run.world_size)
        if self.num_workers:
            start_server()
        scales = task.lr_scales()  # type: ignore[operator]
        optimizer = recipe.build(task.to(run.device), scales, run.precision)
        best, ledger = Best(self.best_rule), Ledger()
        first_step, source = restore(
            run, task, optimizer, best, ledger, identity, resume, extend=self.extend
        )
        step = first_step
        wrapped, optimizer = run.fabric.setup(task, optimizer)
        how = {"batch_size": self.batch_size, "accumulate": self.accumulate}
        updater = Updater(run.fabric, wrapped, optimizer, recipe, **how)
        # Before a step is skipped it has to be looked at.
        guard = FiniteGuard(run, task, 1 if self.nonfinite == SKIP else self.check_finite_every)
        log.info(
            "%d samples, %d steps of %d, %s; %.2f M trainable parameters",
            identity["num_samples"],
            self.max_steps,
            self.batch_size,
            recipe.describe(self.batch_size),
            sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6,
        )
        every: dict[str, Any] = {"save_every": self.save_every, "keep_every": self.keep_every}
        every["keep_last"] = self.keep_last
        saver = Saver(
            run, task, optimizer, best, ledger, guard, identity, meta or {}, source, **every
        )
        run_log = RunLog(run.dir if run.is_main else None, first_step=step)
        line = ProgressLine(run.is_main, step, self.max_steps, self.batch_size, self.log_every)
        means, scalars, reason = RunningMeans(), dict[str, float](), None
        stopped_by: str | None = None
        began = time.perf_counter()
        with (
            Watchdog(run),
            StopSignals() as signals,
            line,
            self._feed(run, dataset, collate, prepare, ledger) as feed,
        ):
            steps = Steps(
                run, task, feed, updater, guard, prepare, saver, ledger,
                policy=self.nonfinite, first_step=step,
            )  # fmt: skip
            is_last_lost = source is not None and resume == "auto" and source.name != LAST
            if is_last_lost and step == self.max_steps:
                saver.save(step, is_final=True)  # no step does it
            if self.nonfinite == REWIND and saver.newest is None:
                saver.save(step, is_final=True)  # something to rewind to
            if step == 0:
                at_start = [hook for hook in hooks if hook.at_start]
                first, reason = call_hooks(at_start, task, StepInfo(0, self.max_steps), run)
                run_log.scalars(0, first)
                stopped_by = None if reason is None else "hook"
            task.train()
            signals.defer()
            while step < self.max_steps and reason is None:
                try:
                    taken = steps.take(StepInfo(step, self.max_steps))
                    TRAINED.set()
                    means.add(taken.result.scalars if taken else {})
                    last = step + 1 == self.max_steps
                    now = [hook for hook in hooks if last or falls_on(step + 1, hook.every)]
                    is_logged = last or falls_on(step + 1, self.log_every)
                    if is_logged or now or saver.is_due(step + 1):
                        guard.check(step)
                    step += 1
                    with saver.saved_first(step):
                        hooked, reason = call_hooks(now, task, StepInfo(step, self.max_steps), run)
                        if is_logged:
                            extra = taken.extra if taken else {}
                            scalars = means.take() | {k: float(v) for k, v in extra.items()}
                            scalars |= ledger.scalars()
                            scalars["speed/images_per_s"] = line.images_per_s(step)
                        run_log.scalars(step, (scalars if is_logged else {}) | hooked)
                        line.update(step, scalars.get("loss") if is_logged else None)
                        if taken and (last or falls_on(step, self.image_every)):
                            with run.together():
                                if run.is_main:
                                    run_log.images(step, drawn(task, taken.batch, hooks, run))
                        is_best = best.see(step, hooked)
                    stopped_by = None if reason is None else "hook"
                    if now and not last and reason is None:
                        reason = best.reason
                        stopped_by = None if reason is None else "patience"
                    if stopped_by is None and run.any_rank(signals.received is not None):
                        stopped_by = next(filter(None, objects_of_ranks(signals.received)))
                    if stopped_by is None and step - first_step == self.stop_after:
                        stopped_by = "stop_after"
                    stop = stopped_by is not None
                    if last or stop or is_best or saver.is_due(step):
                        saver.save(step, is_best, is_final=last or stop)
                    if last:
                        stopped_by = "hook" if reason is not None else None
                    elif stop:
                        signals.answer()
                        why = reason or stopped_by
                        advice = "" if stopped_by == "patience" else ", go on with resume=auto"
                        log.warning("%s: stopped after step %d%s", why, step, advice)
                        break
                except NotFiniteError as error:
                    step = steps.rewind(error)
                    run_log, means = run_log.again(step), RunningMeans()
                    reason = stopped_by = None
        if reason is not None:
            run.record("stopped", {"step": step, "reason": reason})
        if best.figure is not None:
            log.info("best %s: %.4g after step %d", *best.figure)
            run.record("best", best.figure._asdict())
        run_log.close()
        seconds = time.perf_counter() - began
        run.fabric.barrier()
        rate, early = line.images_per_s(step), step < self.max_steps
        return FitResult(step, seconds, rate, early, scalars, reason, best.figure, stopped_by)

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

    def _feed(
        self,
        run: Run,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        prepare: Prepare,
        ledger: Ledger,
    ) -> PrefetchingLoader:
        steps = StepSampler(
            len(dataset),  # type: ignore[arg-type]
            self.batch_size,
            run.seed,
            start_step=0,
            end_step=self.max_steps,
            rank=run.rank,
            world_size=run.world_size,
        )
        how: dict[str, Any] = {"total_steps": self.max_steps, "num_workers": self.num_workers}
        how |= {"seed": run.seed, "max_unreadable": self.max_unreadable, "ledger": ledger}
        return PrefetchingLoader(run.fabric, dataset, collate, prepare, steps, **how)
