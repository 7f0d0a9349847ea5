"""A training run on disk: saved while it goes, restored when it goes on."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from handmim.engine.best import Best, BestFigure
from handmim.engine.checkpoint import (
    BEST,
    LAST,
    check_same_run,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from handmim.engine.ledger import Ledger
from handmim.engine.optim import FORMS
from handmim.engine.watchdog import beat
from handmim.utils.run import Run

log = logging.getLogger(__name__)


def restore(
    run: Run,
    task: nn.Module,
    optimizer: Optimizer,
    best: Best,
    ledger: Ledger,
    identity: dict[str, Any],
    resume: str,
) -> int:
    """Put task, optimizer, precision and the best figure where a checkpoint left them.

    Args:
        run: devices, folder and config.
        task, optimizer: as built, before Fabric wraps them; changed in place.
        ledger: filled too.
        best: filled too; forgotten unless the folder's best.pt is what it was kept for.
        identity: what has to be the same for a run to go on: see `check_same_run`.
        resume: "never", "auto" or a checkpoint.
    Returns: finished steps, 0 for a new run.
    Raises: FileNotFoundError, or ValueError for a damaged checkpoint or one of another run.
    """
    source = find_checkpoint(run.dir, resume)
    kept = run.dir / BEST
    if source is None:
        if run.is_main:
            kept.unlink(missing_ok=True)  # of a start that came to no checkpoint of its own
        return 0
    state = load_checkpoint(source, map_location=run.device)
    check_same_run(state, identity, run.config, source)
    _take_over(state, run, task, optimizer, best, ledger)
    if best.figure is not None and best.figure != _figure_of(kept):
        log.warning("%s is not the best that %s remembers: it begins anew", kept, source)
        best.forget()
    step: int = state["step"]
    log.info("resumed %s at step %d of %d", source, step, identity["max_steps"])
    return step


def _take_over(
    state: dict[str, Any],
    run: Run,
    task: nn.Module,
    optimizer: Optimizer,
    best: Best,
    ledger: Ledger,
) -> None:
    task.load_state_dict(state["task"])
    for saved, built in zip(
        state["optimizer"]["param_groups"], optimizer.param_groups, strict=False
    ):
        saved |= {form: built[form] for form in FORMS if form in built}  # as this run chooses
    optimizer.load_state_dict(state["optimizer"])
    run.fabric.strategy.precision.load_state_dict(state["precision"])
    if "best" in state:
        best.load_state_dict(state["best"])
    if "ledger" in state:
        ledger.load_state_dict(state["ledger"])


def _figure_of(path: Path) -> BestFigure | None:
    """What a best.pt was kept for by its own account; None where it is not there, not whole or
    older than such accounts."""
    try:
        figure = load_checkpoint(path).get("best", {}).get("figure")
    except (FileNotFoundError, ValueError):
        return None
    return None if figure is None else BestFigure(**figure)


class Saver:
    """Writes last.pt, best.pt, and numbered copies that stay; the main process does.

    Args:
        run: devices, folder and config.
        task: the module that is trained.
        optimizer: as Fabric wrapped it.
        best: what every checkpoint remembers of the best one.
        ledger: what every checkpoint remembers of what was left out.
        identity, meta: facts kept in every checkpoint.
        save_every, keep_every: steps between checkpoints, and between copies; None for none.
    """

    def __init__(
        self,
        run: Run,
        task: nn.Module,
        optimizer: Any,
        best: Best,
        ledger: Ledger,
        identity: dict[str, Any],
        meta: dict[str, Any],
        *,
        save_every: int | None,
        keep_every: int | None,
    ) -> None:
        self.run, self.task, self.optimizer = run, task, optimizer
        self.best, self.ledger = best, ledger
        self.facts = {"identity": identity, "meta": meta, "config": run.config}
        self.save_every, self.keep_every = save_every, keep_every

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint or a copy falls on a step."""
        return falls_on(step, self.save_every) or falls_on(step, self.keep_every)

    def see(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Whether what hooks gave after `step` steps is the best validation so far.

        Raises: ValueError as `Best.see`, after the run was saved: no steps are lost.
        """
        try:
            return self.best.see(step, scalars)
        except ValueError:
            self.save(step)
            log.warning("stopped after step %d, go on with resume=auto", step)
            raise

    def save(self, step: int, is_best: bool = False) -> None:
        """Write the state after `step` steps, first as best.pt where it is the best, and a copy
        where one falls due."""
        beat("the checkpoint after step", step)
        if self.ledger.scalars():
            self.run.record("left_out", self.ledger.state_dict())
        if self.run.is_main:
            state = {
                "step": step,
                "task": self.task.state_dict(),
                **self.facts,
                "optimizer": self.optimizer.state_dict(),
                "precision": self.run.fabric.strategy.precision.state_dict(),
                "best": self.best.state_dict(),
                "ledger": self.ledger.state_dict(),
            }
            if is_best:
                save_checkpoint(self.run.dir / BEST, state)
            save_checkpoint(self.run.dir / LAST, state)
            self.run.discard_replaced()
            if falls_on(step, self.keep_every):
                save_checkpoint(self.run.dir / f"step_{step:07d}.pt", state)

    def load_last(self) -> int:
        """Put everything back to what last.pt holds; returns its step."""
        state = load_checkpoint(self.run.dir / LAST, map_location=self.run.device)
        _take_over(state, self.run, self.task, self.optimizer, self.best, self.ledger)
        step: int = state["step"]
        return step


def falls_on(step: int, every: int | None) -> bool:
    """Whether something that is done every so many steps is done now; None is never."""
    return bool(every) and step % every == 0  # type: ignore[operator]
