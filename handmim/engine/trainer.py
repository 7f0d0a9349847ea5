"""The trainer: it knows steps, devices and files, and nothing of hands.

Everything random is a function of (seed, step), and so are schedules and data order: an interrupted
and resumed run equals an uninterrupted one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from handmim.engine.loader import PrefetchingLoader
from handmim.engine.log import Hook
from handmim.engine.loop import SKIP, FitResult, Loop, LoopSettings
from handmim.engine.optim import OptimizerConfig
from handmim.engine.saver import BestRule, BestTracker, Saver
from handmim.engine.step import FiniteGuard, Ledger, Prepare, TrainStep
from handmim.engine.stop import StopSignals, Watchdog
from handmim.engine.workers import Collate, start_server
from handmim.utils.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trainer(LoopSettings):
    """Runs a task for a number of steps."""

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
        """Train a types.Task on map-style samples.

        Args:
            prepare: batch on the device -> augmented batch; draws from the generator only. Its
                `host_part`, where it has one, is done before, see `loader.PrefetchingLoader`.
            resume: "never", "auto" or a checkpoint.
            meta: plain facts of every checkpoint; ..._sha256 must be the same for a run to go on.
        Raises: NotFiniteError for a loss that is not finite; LoadingError for a batch that cannot
            be loaded; ValueError for a validation without the metric that `keep_best` names. The
            run is saved first.
        """
        self.check_batch(run.world_size)
        if self.num_workers:
            start_server()
        ledger, sizes = Ledger(), {"batch_size": self.batch_size, "seed": run.seed}
        step = TrainStep(
            run.fabric, task, config, prepare=prepare, accumulate=self.accumulate, **sizes
        )
        # Before a step is skipped it has to be checked.
        guard = FiniteGuard(run, task, 1 if self.nonfinite == SKIP else self.check_finite_every)
        best = BestTracker(BestRule(self.keep_best, self.stop_patience))
        identity = self._identity(run, dataset, meta or {})
        saver = Saver(
            run, task, step.optimizer, best, ledger, guard.check, identity, meta or {},
            keep_every=self.keep_every, keep_last=self.keep_last,
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
        with Watchdog(run), StopSignals() as signals, loader:
            loop = Loop(self, run, step, guard, saver, loader, signals, hooks, first_step)
            return loop.run_all(resume)

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
