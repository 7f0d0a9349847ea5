"""A training run on disk: saved while it goes, its best validation kept, restored to go on."""

import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from handmim.engine.checkpoint import BEST, LAST, load_checkpoint, load_newest, save_checkpoint
from handmim.engine.identity import check_same_run
from handmim.engine.loader import beat
from handmim.engine.optim import FORMS, changed_schedules, load_optimizer
from handmim.engine.step import Ledger, falls_on
from handmim.utils.files import FULL, atomic_path
from handmim.utils.renames import new_entry
from handmim.utils.run import Run

log = logging.getLogger(__name__)

AUTO = "auto"
AUTO_METRICS = ("val/pa_mpvpe_mm", "val/pa_mpjpe_mm", "val/err2d_percent")
RISING = re.compile(r"auc|pck\d*|f\d+")  # a word of the name of a metric that is good when large


class BestMetric(NamedTuple):
    """The best value of a metric so far, and the number of finished steps that gave it."""

    metric: str
    value: float
    step: int


def is_higher_better(metric: str) -> bool:
    """True of areas under PCK curves, PCK and F-scores; False of errors and losses."""
    return any(RISING.fullmatch(word) for word in metric.rsplit("/", 1)[-1].split("_"))


@dataclass(frozen=True)
class BestRule:
    """What makes a checkpoint the best, and when to stop. Raises ValueError for a name of no
    validation metric, and for a patience below 1 or without a metric."""

    keep_best: str | None = None  # a val/...; "auto" is the first of `AUTO_METRICS` there is
    stop_patience: int | None = None  # validations in a row without an improvement

    def __post_init__(self) -> None:
        if self.keep_best not in (None, AUTO) and not str(self.keep_best).startswith("val/"):
            raise ValueError(
                f"keep_best must be auto, null or a validation metric such as {AUTO_METRICS[0]}, "
                f"got {self.keep_best!r}"
            )
        if self.stop_patience is None:
            return
        if self.stop_patience < 1:
            raise ValueError(f"stop_patience must be >= 1 or null, got {self.stop_patience}")
        if self.keep_best is None:
            raise ValueError(
                f"stop_patience={self.stop_patience} waits for a better metric, and "
                "keep_best=null names none (trainer.keep_best=auto)"
            )

    def check(self, known: Sequence[str]) -> None:
        """Raises: ValueError for a metric that no validation gives, listing the known ones."""
        if self.keep_best not in (None, AUTO, *known):
            raise ValueError(
                f"keep_best={self.keep_best}: no validation has this metric, choose one of "
                f"{', '.join(known)}, auto or null"
            )

    def choose(self, scalars: Mapping[str, float]) -> str | None:
        """The metric that counts; None where nothing is kept or `scalars` hold no validation.
        Raises: ValueError listing the metrics there are, when the required one is not there."""
        names = [n for n in scalars if n.startswith("val/") and not n.startswith("val/num_")]
        if self.keep_best is None or not names:
            return None
        candidates = AUTO_METRICS if self.keep_best == AUTO else (self.keep_best,)
        chosen = next((name for name in candidates if name in names), None)
        if chosen is None:
            raise ValueError(
                f"the validation has no {' or '.join(candidates)}, it has "
                f"{', '.join(sorted(names))} (trainer.keep_best, null for none)"
            )
        return chosen


def _described(metric: str, counts: Mapping[str, int]) -> str:
    over = ", ".join(f"{n.removeprefix('val/')} {num}" for n, num in sorted(counts.items()))
    return f"{metric} of {over}" if over else metric


class BestTracker:
    """The best validation of a run; `reason` says why the run should stop after the latest one."""

    def __init__(self, rule: BestRule) -> None:
        self.rule = rule
        self.best: BestMetric | None = None
        self.counts: dict[str, int] | None = None  # samples of it; None of an older checkpoint
        self.reason: str | None = None
        self._waited = 0  # validations without an improvement

    def update(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Whether the scalars of all hooks hold the best validation so far: finite, and the first
        or better. Another metric than before, or one over another number of samples, begins anew.
        Raises: ValueError as `BestRule.choose`."""
        self.reason, metric = None, self.rule.choose(scalars)
        if metric is None:
            return False
        counts = {n: int(v) for n, v in scalars.items() if n.startswith("val/num_")}
        if self.best is not None:
            before = self.best.metric, counts if self.counts is None else self.counts
            if before != (metric, counts):
                now = _described(metric, counts)
                log.warning("%s is what counts from now on, not %s", now, _described(*before))
                self.best, self._waited = None, 0
        value = float(scalars[metric])
        if self._improves(metric, value):
            self.best, self.counts, self._waited = BestMetric(metric, value, step), counts, 0
            return True
        self._waited += 1
        if self.rule.stop_patience is not None and self._waited >= self.rule.stop_patience:
            self.reason = (
                f"{metric} did not improve in {self._waited} validations (a larger "
                "trainer.stop_patience goes on)"
            )
        return False

    def _improves(self, metric: str, value: float) -> bool:
        if self.best is None or not math.isfinite(value):
            return math.isfinite(value)
        before = self.best.value
        return value > before if is_higher_better(metric) else value < before

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        best = None if self.best is None else self.best._asdict()
        return {"figure": best, "counts": self.counts, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        best = state["figure"]
        self.best = None if best is None else BestMetric(**best)
        self.counts, self._waited = state.get("counts"), state["waited"]


@dataclass
class Saver:
    """Writes last.pt, best.pt and numbered copies, on the main process, and reads them back. A save
    that the disk refuses is an error of the log alone, but for the last one."""

    run: Run
    task: nn.Module
    optimizer: Any  # as Fabric wrapped it
    best: BestTracker
    ledger: Ledger
    check: Callable[[int], None]  # called with the last finished step; refuses lost weights
    identity: dict[str, Any]  # what has to be the same for a run to go on, see `check_same_run`
    meta: dict[str, Any]  # further facts kept in every checkpoint
    keep_every: int | None  # steps between numbered copies
    keep_last: int  # newest checkpoints that stay: last.pt, and last-1.pt that it replaced, ...
    newest: Path | None = None  # checkpoint that was written, or resumed from, last

    def restore(self, resume: str, *, extend: bool = False) -> int:
        """Put everything where a checkpoint left it ("never", "auto" or its file); the best metric
        is forgotten unless the folder's best.pt is what it was kept for. With `extend` another
        number of steps is allowed, and the log and run.json name what that changes.

        Returns: finished steps, 0 for a new run.
        Raises: FileNotFoundError, or ValueError for a damaged checkpoint or one of another run.
        """
        loaded = load_newest(self.run.dir, resume)
        if loaded is None:
            self.run.write_start()
            return 0
        self.newest, state = loaded
        check_same_run(state, self.identity, self.run.config, self.newest, extend=extend)
        self.run.write_start()
        step, total = state["step"], self.identity["max_steps"]
        if (before := state["identity"]["max_steps"]) != total:
            _extend(self.run, step, before, total, self.newest)
        self._load(state)
        kept = self.run.dir / BEST
        if self.best.best is not None and self.best.best != _best_of(kept):
            log.warning("%s is not the best that %s remembers: it begins anew", kept, self.newest)
            self.best.best = None
        log.info("resumed %s at step %d of %d", self.newest, step, total)
        return int(step)

    def go_back(self) -> int:
        """Put everything back to the newest checkpoint; returns its step."""
        newest = self.run.fabric.broadcast(self.newest)
        assert newest is not None  # a run that may rewind saves before its first step
        state = load_checkpoint(newest)
        self._load(state)
        return int(state["step"])

    def _load(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state["task"])
        groups = zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=False)
        for saved, built in groups:
            saved |= {form: built[form] for form in FORMS if form in built}  # as this run chooses
        order = [new_entry(name) for name in state["task"]]
        load_optimizer(self.optimizer, state["optimizer"], self.task, order)
        self.run.fabric.strategy.precision.load_state_dict(state["precision"])
        if "best" in state:
            self.best.load_state_dict(state["best"])
        if "ledger" in state:
            self.ledger.load_state_dict(state["ledger"])

    @contextmanager
    def saved_first(self, step: int) -> Iterator[None]:
        """An error within ends the run after a save of its `step` steps."""
        try:
            yield
        except Exception:
            self.save(step, is_final=True)
            log.warning("stopped after step %d, go on with resume=auto", step)
            raise

    def save(self, step: int, is_best: bool = False, *, is_final: bool = False) -> None:
        """Write the state after `step` finished steps, also as best.pt where it is the best, and a
        copy where one falls due.

        Raises: OSError of a final save, on all processes; NotFiniteError for weights that are lost.
        """
        self.check(step - 1)
        beat(f"the checkpoint after step {step}")
        with self.run.together() if is_final else nullcontext():
            if self.run.is_main:
                self._try(step, is_best, is_final)

    def _try(self, step: int, is_best: bool, is_final: bool) -> None:
        try:
            self._write(step, is_best)
        except OSError as error:
            if not is_final:
                log.error("%s: training goes on, the next save may succeed", error)
                if is_best:
                    self.best.best = None  # the next validation is kept
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
            "task": self.task.state_dict(),
            "identity": self.identity,
            "meta": self.meta,
            "config": self.run.config,
            "optimizer": self.optimizer.state_dict(),
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
        for path in self._rolled():
            if int(path.stem[5:]) >= self.keep_last:
                path.unlink()
        earlier = [self.run.dir / f"last-{number}.pt" for number in range(1, self.keep_last)]
        last = self.run.dir / LAST
        if not earlier or not last.is_file():
            return
        if earlier[0].is_file() and earlier[0].samefile(last):
            return  # of a save that failed
        for newer, older in zip(earlier[-2::-1], earlier[:0:-1], strict=True):
            if newer.is_file():
                newer.replace(older)
        earlier[0].unlink(missing_ok=True)
        try:
            os.link(last, earlier[0])
        except OSError:  # a file system without links
            with atomic_path(earlier[0]) as partial:
                shutil.copyfile(last, partial)


def _extend(run: Run, step: int, before: int, after: int, source: Path) -> None:
    """Log what another number of steps changes; raises ValueError when the run has as many."""
    if step >= after:
        raise ValueError(f"{source} has {step} steps already, got {after} (max_steps)")
    changed = changed_schedules(run.config, step, before, after)
    text = ", ".join(f"{k} {a:.4g} to {b:.4g}" for k, (a, b) in changed.items())
    log.warning(
        "from step %d on the schedules are those of %d steps, before it those of %d: %s",
        step, after, before, text or "none of the config's differs at this step",
    )  # fmt: skip
    run.record("extended", {"step": step, "from": before, "to": after, "schedules": changed})


def _best_of(path: Path) -> BestMetric | None:
    """What a best.pt was kept for by its own account, where it is whole and has one."""
    try:
        metric = load_checkpoint(path, "meta").get("best", {}).get("figure")
    except (FileNotFoundError, ValueError):
        return None
    return None if metric is None else BestMetric(**metric)
