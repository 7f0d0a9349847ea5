"""Running one cell, and writing down what came of it."""

import logging
import platform
import time
import traceback
from typing import Any, Protocol

from handmim.ablation.files import record_text
from handmim.ablation.plan import CELL, ERROR, Cell
from handmim.ablation.store import code_state, figures_of
from handmim.utils.files import locked, write_atomic
from handmim.utils.messages import sentence

log = logging.getLogger(__name__)


class Runs(Protocol):
    """What makes the stages of a cell: `Stages`, or a stand-in."""

    def run(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """Records by stage name, each with figures, seconds and more."""
        ...


def run_cell(cell: Cell, runs: Runs, overwrite: bool = False) -> dict[str, Any]:
    """Run a cell unless it is finished; what it says is in <folder>/cell.json.

    Args:
        cell: of a plan.
        runs: its stages.
        overwrite: run again what was finished for another definition, or under other defaults.
    Returns: the content of cell.json.
    Raises: ValueError for a stale cell; whatever the stages raise, written to error.txt as well.
    """
    code = code_state()
    with locked(cell.folder):
        if not cell.needs_run(overwrite):
            log.info("%s: finished before, not run again", cell.name)
            done = cell.read()
            assert done is not None
            return done
        if cell.state == "stale" and not overwrite:
            raise ValueError(stale_message([cell]))
        (cell.folder / CELL).unlink(missing_ok=True)
        error = cell.folder / ERROR
        error.unlink(missing_ok=True)
        try:
            records = runs.run(cell)
        except Exception as failure:  # notes of a traceback would stand behind the reason
            last = f"{type(failure).__name__}: {sentence(failure)}"
            write_atomic(error, f"{traceback.format_exc()}\n{last}\n")
            raise
        content = content_of(cell, records, code)
        write_atomic(cell.folder / CELL, record_text(content))
    return content


def content_of(
    cell: Cell, records: dict[str, dict[str, Any]], code: dict[str, Any]
) -> dict[str, Any]:
    """Everything that a table, or a reader who doubts it, may want of a cell.

    Args:
        cell: what was asked for.
        records: of its stages.
        code: git state of the process that collected them.
    """
    import torch  # runs the cell, so it is there; plans and tables do without

    return {
        "row": cell.row.name,
        "label": cell.row.label,
        "seed": cell.seed,
        "config_sha": cell.config_sha,
        "figures": figures_of(records),
        "steps": cell.steps,
        "stages": {stage: _facts(record) for stage, record in records.items()},
        "overrides": cell.overrides,
        **code,
        "host": platform.node(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    return {k: record.get(k) for k in ("folder", "threads", "git_sha", "git_dirty", "commits")}


def stale_message(cells: list[Cell], shown: int = 6) -> str:
    """What is stale, since when it differs, and the ways out."""
    lines = [f"  {cell.name}: {'; '.join(cell.differences()[:shown])}" for cell in cells]
    return (
        f"{len(cells)} finished cells were made for another definition than today's (- then, + now)"
        ":\n" + "\n".join(lines) + "\nmake them again (overwrite=true), restore the definition, or "
        "give the new one another name (name=...)"
    )
