"""A training run on disk: saved while it goes, its best validation kept, restored to go on."""

import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from handmim.engine.checkpoint import BEST, LAST, load_checkpoint, load_newest, save_checkpoint
from handmim.engine.identity import check_same_run
from handmim.engine.optim import Schedule, load_optimizer
from handmim.engine.step import Ledger, TrainStep, falls_on
from handmim.engine.workers import beat
from handmim.utils.arguments import at_least
from handmim.utils.config import flatten
from handmim.utils.files import FULL, atomic_path
from handmim.utils.renames import new_entry
from handmim.utils.run import Run

log = logging.getLogger(__name__)

AUTO = "auto"
AUTO_METRICS = ("val/pa_mpvpe_mm", "val/pa_mpjpe_mm", "val/err2d_percent")
# A word of the name of a metric that is good when large: area under a PCK curve, PCK, F-score.
RISING = re.compile(r"auc|pck\d*|f\d+")
SCHEDULE = "handmim.engine.optim.Schedule"  # as configs name it


class BestMetric(NamedTuple):
    """The best value of a metric so far, and the number of finished steps that gave it."""

    metric: str
    value: float
    step: int


def _described(metric: str, counts: Mapping[str, int]) -> str:
    over = ", ".join(f"{n.removeprefix('val/')} {num}" for n, num in sorted(counts.items()))
    return f"{metric} of {over}" if over else metric


@dataclass
class BestTracker:
    """The best validation of a run. Raises ValueError for a rule that cannot be followed."""

    keep_best: str | None = None  # a val/...; "auto" is the first of `AUTO_METRICS` there is
    stop_patience: int | None = None  # validations in a row without an improvement
    best: BestMetric | None = None
    counts: dict[str, int] | None = None  # samples of it; None of an older checkpoint
    waited: int = 0  # validations without an improvement
    reason: str | None = None  # why the run should stop after the latest validation

    def __post_init__(self) -> None:
        if self.keep_best not in (None, AUTO) and not str(self.keep_best).startswith("val/"):
            known = f"auto, null or a validation metric such as {AUTO_METRICS[0]}"
            raise ValueError(f"keep_best must be {known}, got {self.keep_best!r}")
        if self.stop_patience is not None:
            at_least(1, stop_patience=self.stop_patience)
            if self.keep_best is None:
                raise ValueError("stop_patience: keep_best=null names none (keep_best=auto)")

    def choose(self, metrics: Iterable[str]) -> str | None:
        """The metric that counts; None where nothing is kept or no name is of a validation."""
        names = [n for n in metrics if n.startswith("val/") and not n.startswith("val/num_")]
        if self.keep_best is None or not names:
            return None
        candidates = AUTO_METRICS if self.keep_best == AUTO else (self.keep_best,)
        chosen = next((name for name in candidates if name in names), None)
        if chosen is None:
            known = f"{', '.join(sorted(names))} (trainer.keep_best, null for none)"
            raise ValueError(f"the validation has no {' or '.join(candidates)}, it has {known}")
        return chosen

    def update(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Whether the scalars hold the best validation so far: finite, and the first or better.
        Another metric than before, or one over another number of samples, begins anew."""
        self.reason, metric = None, self.choose(scalars)
        if metric is None:
            return False
        counts = {n: int(v) for n, v in scalars.items() if n.startswith("val/num_")}
        if self.best is not None:
            before = self.best.metric, counts if self.counts is None else self.counts
            if before != (metric, counts):
                now = _described(metric, counts)
                log.warning("%s is what counts from now on, not %s", now, _described(*before))
                self.best, self.waited = None, 0
        value = float(scalars[metric])
        sign = -1 if any(map(RISING.fullmatch, metric.rsplit("/", 1)[-1].split("_"))) else 1
        is_better = self.best is None or sign * value < sign * self.best.value
        if math.isfinite(value) and is_better:
            self.best, self.counts, self.waited = BestMetric(metric, value, step), counts, 0
            return True
        self.waited += 1
        if self.stop_patience is not None and self.waited >= self.stop_patience:
            in_a_row = f"in {self.waited} validations (a larger trainer.stop_patience goes on)"
            self.reason = f"{metric} did not improve {in_a_row}"
        return False

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        best = None if self.best is None else self.best._asdict()
        return {"figure": best, "counts": self.counts, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.best = BestMetric(**state["figure"]) if state["figure"] else None
        self.counts, self.waited, self.reason = state.get("counts"), state["waited"], None


@dataclass
class Saver:
    """Writes last.pt, best.pt and numbered copies, on the main process, and reads them back. A save
    that the disk refuses is an error of the log alone, but for the last one."""

    run: Run
    step: TrainStep
    best: BestTracker
    ledger: Ledger
    check: Callable[[int], None]  # called with the last finished step; refuses lost weights
    identity: dict[str, Any]  # what has to be the same for a run to go on, see `check_same_run`
    meta: dict[str, Any]  # further facts kept in every checkpoint
    keep_every: int | None  # steps between numbered copies
    keep_last: int  # newest checkpoints that stay: last.pt, and last-1.pt that it replaced, ...
    newest: Path | None = None  # checkpoint that was written, or resumed from, last

    def restore(self, resume: str, *, extend: bool = False) -> int:
        """Put everything where a checkpoint left it ("never", "auto" or its file): finished steps,
        0 for a new run. The best metric is forgotten unless the folder's best.pt is what it was
        kept for. Raises: FileNotFoundError, or ValueError for a checkpoint of another run."""
        loaded = load_newest(self.run.dir, resume)
        if loaded is None:
            self.run.write_start()
            return 0
        self.newest, state = loaded
        if "optimizer" not in state:
            text = f"{self.newest} holds averaged weights, and no run that could go on"
            raise ValueError(f"{text}: start another one from them (name=..., init_from=FILE)")
        check_same_run(state, self.identity, self.run.config, self.newest, extend=extend)
        self.run.write_start()
        if state["identity"]["max_steps"] != self.identity["max_steps"]:
            self._extend(state)
        step, total = self._load(state), self.identity["max_steps"]
        if (best := self.best.best) is not None:
            kept = None  # what best.pt was kept for by its own account
            with suppress(FileNotFoundError, ValueError):
                kept = load_checkpoint(self.run.dir / BEST, "meta").get("best", {}).get("figure")
            if kept != best._asdict():
                log.warning("%s is not the best of %s: it begins anew", BEST, self.newest)
                self.best.best = None
        log.info("resumed %s at step %d of %d", self.newest, step, total)
        return step

    def go_back(self) -> int:
        """Put everything back to the newest checkpoint; returns its step."""
        newest = self.run.fabric.broadcast(self.newest)
        assert newest is not None  # a run that may rewind saves before its first step
        return self._load(load_checkpoint(newest))

    def _load(self, state: dict[str, Any]) -> int:
        self.step.task.load_state_dict(state["task"])
        order = [new_entry(name) for name in state["task"]]
        load_optimizer(self.step.optimizer, state["optimizer"], self.step.task, order)
        self.run.fabric.strategy.precision.load_state_dict(state["precision"])
        if "best" in state:
            self.best.load_state_dict(state["best"])
        vars(self.ledger).update(state.get("ledger", {}))
        return int(state["step"])

    def _extend(self, state: dict[str, Any]) -> None:
        """Log what another number of steps changes; raises ValueError when the run has as many."""
        step, before = state["step"], state["identity"]["max_steps"]
        after = self.identity["max_steps"]
        if step >= after:
            raise ValueError(f"{self.newest} has {step} steps already, got {after} (max_steps)")
        flat, changed = flatten(self.run.config), {}
        for key in [k.removesuffix("_target_") for k, v in flat.items() if v == SCHEDULE]:
            node = {k.removeprefix(key): v for k, v in flat.items() if k.startswith(key)}
            schedule = Schedule(**{k: v for k, v in node.items() if not k.startswith("_")})
            pair = schedule(step, before), schedule(step, after)
            if pair[0] != pair[1]:
                changed[key.removesuffix(".")] = pair
        text = ", ".join(f"{k} {a:.4g} to {b:.4g}" for k, (a, b) in changed.items())
        when = f"from step {step} on the schedules are of {after} steps, before it of {before}"
        log.warning("%s: %s", when, text or "none of the config's differs at this step")
        facts = {"step": step, "from": before, "to": after, "schedules": changed}
        self.run.record("extended", facts)

    def save(self, step: int, is_best: bool = False, *, is_final: bool = False) -> None:
        """Write the state after `step` finished steps, also as best.pt and a copy where they are
        due. Raises: OSError of a final save, on all processes; NotFiniteError for weights that are
        lost."""
        self.check(step - 1)
        beat(f"the checkpoint after step {step}")
        with self.run.together() if is_final else nullcontext():
            if not self.run.is_main:
                return
            try:
                self._write(step, is_best)
            except OSError as error:
                if not is_final:
                    log.error("%s: training goes on, the next save may succeed", error)
                    self.best.best = None if is_best else self.best.best  # the next one is kept
                    return
                log.error("%s: once more without earlier checkpoints", error)
                if error.errno in FULL:
                    for path in self._rolled():
                        if path != self.newest:
                            path.unlink()
                self._write(step, is_best)

    def _write(self, step: int, is_best: bool) -> None:
        folder = self.run.dir
        state = {
            "step": step,
            "task": self.step.task.state_dict(),
            "identity": self.identity,
            "meta": self.meta,
            "config": self.run.config,
            "optimizer": self.step.optimizer.state_dict(),
            "precision": self.run.fabric.strategy.precision.state_dict(),
            "best": self.best.state_dict(),
            "ledger": asdict(self.ledger),
        }
        folder.mkdir(parents=True, exist_ok=True)  # it may have been removed
        if is_best:
            save_checkpoint(folder / BEST, state)
        save_checkpoint(folder / LAST, state, before=self._roll)
        self.newest = folder / LAST
        self.run.discard_replaced()
        if self.ledger.scalars():
            self.run.record("left_out", asdict(self.ledger))
        if falls_on(step, self.keep_every):
            save_checkpoint(folder / f"step_{step:07d}.pt", state)

    def _rolled(self) -> list[Path]:
        """last-1.pt, last-2.pt, ... that are there."""
        return [p for p in self.run.dir.glob("last-*.pt") if p.stem[5:].isdigit()]

    def _roll(self) -> None:
        """Give last.pt its second name before it is replaced: no byte is copied."""
        last = self.run.dir / LAST
        earlier = [self.run.dir / f"last-{number}.pt" for number in range(1, self.keep_last)]
        for path in self._rolled():
            if path not in earlier:
                path.unlink()
        if not earlier or not last.is_file():
            return
        if earlier[0].is_file() and earlier[0].samefile(last):
            return  # of a save that failed
        for newer, older in reversed([*pairwise(earlier)]):
            if newer.is_file():
                newer.replace(older)
        earlier[0].unlink(missing_ok=True)
        try:
            os.link(last, earlier[0])
        except OSError:  # a file system without links
            with atomic_path(earlier[0]) as partial:
                shutil.copyfile(last, partial)
