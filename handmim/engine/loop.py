"""The training loop: it knows steps, devices and files, and nothing of hands.

Everything random is a function of (seed, step), and so are schedules and data order: an interrupted
and resumed run equals an uninterrupted one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from handmim.contracts import StepInfo, StepResult
from handmim.engine.best import Best, BestFigure, BestRule
from handmim.engine.feed import Feed, Prepare
from handmim.engine.finite import FiniteGuard
from handmim.engine.log import ProgressLine, RunLog, RunningMeans
from handmim.engine.optim import OptimRecipe
from handmim.engine.sampler import StepSampler
from handmim.engine.saving import Saver, falls_on, restore
from handmim.engine.signals import StopSignals
from handmim.engine.update import Updater
from handmim.utils.run import Run
from handmim.utils.seed import step_generator, step_seed

log = logging.getLogger(__name__)


class StopRun(Exception):  # noqa: N818  it ends a run as a signal does, nothing is broken
    """Raised by a hook for which the run is not worth going on; the loop saves and ends.

    Args:
        reason: one line for the log and run.json.
        scalars: what the hook would have returned.
    """

    def __init__(self, reason: str, scalars: dict[str, float] | None = None) -> None:
        super().__init__(reason)
        self.scalars = scalars or {}


class Hook(Protocol):
    """Something to do now and then: probing, validating.

    Where it has a method `pictures(task, run) -> {name: [H, W, 3] uint8}`, that is asked whenever
    the task is.
    """

    every: int | None  # steps; None = only at the end
    at_start: bool  # also before the first step

    def __call__(self, task: nn.Module, info: StepInfo, run: Run) -> dict[str, float]:
        """Scalars to log.

        Raises: StopRun to end the run.
        """
        ...


class FitResult(NamedTuple):
    """How training ended."""

    step: int
    seconds: float
    images_per_s: float
    interrupted: bool
    scalars: dict[str, float]
    reason: str | None = None  # why a hook, or a figure that did not improve, stopped it
    best: BestFigure | None = None  # what best.pt was kept for


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
        picture_every: steps between pictures; None draws at the end only.
        check_finite_every: steps between checks of loss and gradient norm before the update, see
            `finite.FiniteGuard`.
        accumulate: parts that each process works its batch off in, see `update.Updater`.
        stop_after: stop, resumable, after this many steps of this process.
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
        picture_every: int | None = None,
        check_finite_every: int | None = None,
        accumulate: int = 1,
        stop_after: int | None = None,
        keep_best: str | None = None,
        stop_patience: int | None = None,
    ) -> None:
        for name, value in (
            ("max_steps", max_steps),
            ("batch_size", batch_size),
            ("log_every", log_every),
            ("check_finite_every", check_finite_every),
            ("accumulate", accumulate),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value} (trainer.{name})")
        self.max_steps, self.batch_size, self.num_workers = max_steps, batch_size, num_workers
        self.log_every, self.save_every, self.keep_every = log_every, save_every, keep_every
        self.picture_every, self.check_finite_every = picture_every, check_finite_every
        self.accumulate, self.stop_after = accumulate, stop_after
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
        recipe: OptimRecipe,
        *,
        hooks: Sequence[Hook] = (),
        resume: str = "never",
        meta: dict[str, Any] | None = None,
    ) -> FitResult:
        """Train.

        Args:
            run: devices and folder.
            task: module whose forward is one training step (contracts.Task).
            dataset: map-style samples.
            collate: samples -> batch.
            prepare: batch on the device -> augmented batch; draws from the generator only. What
                it can do before is its `host_part` (`feed.HostPrepare`).
            recipe: optimizer and its schedules.
            hooks: run now and then, on all processes.
            resume: "never", "auto" or a checkpoint.
            meta: plain facts kept in every checkpoint; those named ..._sha256 must be the same for
                a run to go on.
        Returns: FitResult; `interrupted` when a signal, `stop_after`, a hook or `stop_patience`
            ended it early.
        Raises: FloatingPointError before an update with a loss that is not finite; the batch is
            kept on disk. ValueError for a validation without the figure that `keep_best` names;
            the run is saved first.
        """
        identity = self._identity(run, dataset, meta or {})
        self.check_batch(run.world_size)
        scales = task.lr_scales()  # type: ignore[operator]
        optimizer = recipe.build(task.to(run.device), scales, run.precision)
        best = Best(self.best_rule)
        step = first_step = restore(run, task, optimizer, best, identity, resume)
        wrapped, optimizer = run.fabric.setup(task, optimizer)
        how = {"batch_size": self.batch_size, "accumulate": self.accumulate}
        updater = Updater(run.fabric, wrapped, optimizer, recipe, **how)
        guard = FiniteGuard(run, self.check_finite_every)
        feed = self._feed(run, dataset, collate, prepare, step)
        log.info(
            "%d samples, %d steps of %d, %s; %.2f M trainable parameters",
            identity["num_samples"],
            self.max_steps,
            self.batch_size,
            recipe.describe(self.batch_size),
            sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6,
        )
        every = {"save_every": self.save_every, "keep_every": self.keep_every}
        saver = Saver(run, task, optimizer, best, identity, meta or {}, **every)
        run_log = RunLog(run.dir if run.is_main else None, first_step=step)
        line = ProgressLine(run.is_main, step, self.max_steps, self.batch_size, self.log_every)
        means, scalars, reason = RunningMeans(), dict[str, float](), None
        began = time.perf_counter()
        with StopSignals() as signals, line:
            if step == 0:
                at_start = [hook for hook in hooks if hook.at_start]
                first, reason = self._call(at_start, task, StepInfo(0, self.max_steps), run)
                run_log.scalars(0, first)
            task.train()
            for loaded in feed if reason is None else ():
                info = StepInfo(step, self.max_steps)
                batch, result, extra = self._step(run, updater, guard, loaded, prepare, info)
                extra |= task.after_step(info)  # type: ignore[operator]
                means.add(result.scalars)
                step += 1
                last = step == self.max_steps
                now = [hook for hook in hooks if last or falls_on(step, hook.every)]
                is_logged = last or falls_on(step, self.log_every)
                if is_logged or now:
                    guard.check()
                hooked, reason = self._call(now, task, StepInfo(step, self.max_steps), run)
                if is_logged:
                    scalars = means.take() | {k: float(v) for k, v in extra.items()}
                    scalars["speed/images_per_s"] = line.images_per_s(step)
                run_log.scalars(step, (scalars if is_logged else {}) | hooked)
                line.update(step, scalars["loss"] if is_logged else None)
                if run.is_main and (last or falls_on(step, self.picture_every)):
                    run_log.pictures(step, self._pictures(task, batch, hooks, run))
                is_best = saver.see(step, hooked)
                if now and not last and reason is None:  # None on all processes or on none
                    reason = run.fabric.broadcast(best.reason)
                stop = self._agree(run, signals.received is not None, step)
                stop |= step - first_step == self.stop_after or reason is not None
                if last or stop or is_best or saver.is_due(step):
                    guard.check()
                    saver.save(step, is_best)
                if stop and not last:
                    why = reason or signals.received or "stop_after"
                    log.warning("%s: stopped after step %d, go on with resume=auto", why, step)
                    break
        if reason is not None:
            run.record("stopped", {"step": step, "reason": reason})
        if best.figure is not None:
            log.info("best %s: %.4g after step %d", *best.figure)
            run.record("best", best.figure._asdict())
        run_log.close()
        seconds = time.perf_counter() - began
        run.fabric.barrier()
        rate, early = line.images_per_s(step), step < self.max_steps
        return FitResult(step, seconds, rate, early, scalars, reason, best.figure)

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
        step: int,
    ) -> Feed:
        steps = StepSampler(
            len(dataset),  # type: ignore[arg-type]
            self.batch_size,
            run.seed,
            start_step=step,
            end_step=self.max_steps,
            rank=run.rank,
            world_size=run.world_size,
        )
        how = {"total_steps": self.max_steps, "num_workers": self.num_workers}
        return Feed(run.fabric, dataset, collate, prepare, steps, seed=run.seed, **how)

    def _step(
        self,
        run: Run,
        updater: Updater,
        guard: FiniteGuard,
        loaded: Any,
        prepare: Prepare,
        info: StepInfo,
    ) -> tuple[Any, StepResult, dict[str, Any]]:
        """One update: augmentation, loss, backward, clip, optimizer."""
        extra: dict[str, Any] = dict(updater.schedule(info))
        # Dropout and stochastic depth have no generator argument: the global one is set by step
        # instead.
        torch.manual_seed(step_seed(run.seed, "step", info.step, run.rank))
        generator = step_generator(run.seed, "prepare", info.step, run.rank)
        batch = prepare(loaded, generator, info)
        result = updater.backward(batch, info)
        norm = updater.clip()
        if norm is not None:
            extra["gradient_norm"] = norm
        guard.before_update(info, batch, result, norm)
        updater.update()
        return batch, result, extra

    def _agree(self, run: Run, wants_stop: bool, step: int) -> bool:
        """All processes stop after the same step, asked only where they wait for each other
        anyway."""
        if run.world_size == 1:
            return wants_stop
        return step % self.log_every == 0 and run.any_rank(wants_stop)

    def _call(
        self, hooks: Sequence[Hook], task: nn.Module, info: StepInfo, run: Run
    ) -> tuple[dict[str, float], str | None]:
        """Run hooks in eval mode without gradients, then go back to training.

        Returns: their scalars, and why the run should stop: the same on all processes.
        """
        scalars: dict[str, float] = {}
        reason: str | None = None
        if not hooks:
            return scalars, reason
        task.eval()
        with torch.no_grad():
            for hook in hooks:
                try:
                    scalars |= hook(task, info, run)
                except StopRun as stop:
                    scalars |= stop.scalars
                    reason = reason or str(stop)
        task.train()
        return scalars, self._common(run, reason)

    def _common(self, run: Run, reason: str | None) -> str | None:
        """A reason to stop where any process has one; all of them have to ask."""
        if run.any_rank(reason is not None):
            return reason or "stopped by another process"
        return None

    def _pictures(
        self, task: nn.Module, batch: Any, hooks: Sequence[Hook], run: Run
    ) -> dict[str, NDArray[np.uint8]]:
        """Those of the task, and of every hook that has some."""
        pictures = dict(task.pictures(batch))  # type: ignore[operator]
        task.eval()
        for hook in hooks:
            if hasattr(hook, "pictures"):
                pictures |= hook.pictures(task, run)
        task.train()
        return pictures
