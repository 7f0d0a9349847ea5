"""A training run on disk: saved while it goes, restored when it goes on."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from handmim.engine.best import BestMetric, BestTracker
from handmim.engine.checkpoint import (
    BEST,
    LAST,
    load_checkpoint,
    load_newest,
    rolling,
    save_checkpoint,
)
from handmim.engine.identity import check_same_run
from handmim.engine.optim import FORMS, load_optimizer
from handmim.engine.prefetch import Ledger
from handmim.engine.schedule import changed_schedules
from handmim.engine.workers import beat
from handmim.utils.files import atomic_path, is_full
from handmim.utils.renames import new_entry
from handmim.utils.run import Run

log = logging.getLogger(__name__)


@dataclass
class Saver:
    """Writes last.pt, best.pt, and numbered copies that stay, and reads them back; the main process
    writes.

    A save that the disk refuses is an error of the log alone, but for the last one.
    """

    run: Run
    task: nn.Module
    optimizer: Any  # as Fabric wrapped it
    best: BestTracker
    ledger: Ledger
    check: Callable[[int], None]  # called with the last finished step; refuses lost weights
    identity: dict[str, Any]  # what has to be the same for a run to go on, see `check_same_run`
    meta: dict[str, Any]  # further facts kept in every checkpoint
    save_every: int | None  # steps between checkpoints
    keep_every: int | None  # steps between numbered copies
    keep_last: int  # newest checkpoints that stay: last.pt, and last-1.pt that it replaced, ...
    newest: Path | None = None  # checkpoint that was written, or resumed from, last

    def restore(self, resume: str, *, extend: bool = False) -> int:
        """Put everything where a checkpoint left it; the best metric is forgotten unless the
        folder's best.pt is what it was kept for.

        Args:
            resume: "never", "auto" or a checkpoint.
            extend: another number of steps is allowed; the log and run.json name what that changes.
        Returns: finished steps, 0 for a new run.
        Raises: FileNotFoundError, or ValueError for a damaged checkpoint or one of another run.
        """
        loaded = load_newest(self.run.dir, resume)
        if loaded is None:
            self.run.write_start()
            return 0
        self.newest, state = loaded
        identity = self.identity
        check_same_run(state, identity, self.run.config, self.newest, extend=extend)
        self.run.write_start()
        step: int = state["step"]
        if (before := state["identity"]["max_steps"]) != identity["max_steps"]:
            _extend(self.run, step, before, identity["max_steps"], self.newest)
        self._load(state)
        kept = self.run.dir / BEST
        if self.best.best is not None and self.best.best != _best_of(kept):
            log.warning("%s is not the best that %s remembers: it begins anew", kept, self.newest)
            self.best.forget()
        log.info("resumed %s at step %d of %d", self.newest, step, identity["max_steps"])
        return step

    def load_newest(self) -> int:
        """Put everything back to the newest checkpoint that this run wrote, or goes on from;
        returns its step."""
        newest = self.run.fabric.broadcast(self.newest)
        assert newest is not None  # a run that may rewind saves before its first step
        state = load_checkpoint(newest)
        self._load(state)
        step: int = state["step"]
        return step

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

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint or a copy falls on a step."""
        return falls_on(step, self.save_every) or falls_on(step, self.keep_every)

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

        Args:
            step: number of finished steps.
            is_best: of all validations so far.
            is_final: the run ends with it.
        Raises: OSError of a final save, tried again without the copies that the disk may lack; on
            all processes. NotFiniteError for weights that are lost.
        """
        self.check(step - 1)
        beat("the checkpoint after step", step)
        with self.run.together() if is_final else nullcontext():
            if self.run.is_main:
                self._save(step, is_best, is_final)

    def _save(self, step: int, is_best: bool, is_final: bool) -> None:
        try:
            self._write(step, is_best)
        except OSError as error:
            if not is_final:
                log.error("%s: training goes on, the next save may succeed", error)
                if is_best:
                    self.best.forget()  # the next validation is kept
                return
            log.error("%s: once more without earlier checkpoints", error)
            if is_full(error):
                for path in self._rolled():
                    if path != self.newest:
                        path.unlink()
            self._write(step, is_best)

    def _write(self, step: int, is_best: bool) -> None:
        state = {
            "step": step,
            "task": self.task.state_dict(),
            "identity": self.identity,
            "meta": self.meta,
            "config": self.run.config,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.run.fabric.strategy.precision.state_dict(),
            "best": self.best.state_dict(),
            "ledger": self.ledger.state_dict(),
        }
        self.run.dir.mkdir(parents=True, exist_ok=True)  # it may have been removed
        if is_best:
            save_checkpoint(self.run.dir / BEST, state)
        save_checkpoint(self.run.dir / LAST, state, before=self._roll)
        self.newest = self.run.dir / LAST
        self.run.discard_replaced()
        if self.ledger.scalars():
            self.run.record("left_out", self.ledger.state_dict())
        if falls_on(step, self.keep_every):
            save_checkpoint(self.run.dir / f"step_{step:07d}.pt", state)

    def _rolled(self) -> list[Path]:
        """last-1.pt, last-2.pt, ... that are there."""
        return [p for p in self.run.dir.glob("last-*.pt") if p.stem[5:].isdigit()]

    def _roll(self) -> None:
        """Give last.pt its second name before it is replaced: no byte is copied."""
        for path in self._rolled():
            if int(path.stem[5:]) >= self.keep_last:
                path.unlink()
        names = [rolling(self.run.dir, number) for number in range(self.keep_last)]
        last = names[0]
        if len(names) < 2 or not last.is_file():
            return
        if names[1].is_file() and names[1].samefile(last):
            return  # of a save that failed
        for newer, older in zip(names[-2:0:-1], names[:1:-1], strict=True):
            if newer.is_file():
                newer.replace(older)
        names[1].unlink(missing_ok=True)
        try:
            os.link(last, names[1])
        except OSError:  # a file system without links
            with atomic_path(names[1]) as partial:
                shutil.copyfile(last, partial)


def falls_on(step: int, every: int | None) -> bool:
    """Whether something that is done every so many steps is done now; None is never."""
    return bool(every) and step % every == 0  # type: ignore[operator]


def _extend(run: Run, step: int, before: int, after: int, source: Path) -> None:
    """Log what another number of steps changes.

    Raises: ValueError when the run has as many steps already.
    """
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
