"""From a composed configs/ablate.yaml to a finished table."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from handmim.ablation.cell import stale_message
from handmim.ablation.collect import collect, publish
from handmim.ablation.plan import ERROR, Cell, Compose, plan
from handmim.ablation.table import Table, read_table

log = logging.getLogger(__name__)

# (cells, to be told of each that ended)
Launch = Callable[[Sequence[Cell], Callable[[Cell], None]], None]


def table_folder(cfg: DictConfig) -> Path:
    """<run_root>/ablations/<name of the table, its setting and its budget>."""
    return Path(cfg.paths.run_root).absolute() / "ablations" / cfg.name


def read_plan(cfg: DictConfig, compose: Compose) -> tuple[Table, list[Cell]]:
    """The table and all its cells, every override tried."""
    table = read_table(cfg)
    return table, plan(table, table_folder(cfg), compose)


def run_table(
    table: Table,
    cells: Sequence[Cell],
    folder: Path,
    launch: Launch,
    overwrite: bool = False,
    out: Path | None = None,
) -> list[Cell]:
    """Run what is not finished; the table is written before, in between and after.

    Args:
        table: rows and columns.
        cells: of the plan.
        folder: of the table.
        launch: runs cells; one that fails does not stop the others.
        overwrite: run stale and outdated cells again.
        out: folder that takes copies of the table's files; None for none.
    Returns: cells that failed.
    Raises: ValueError when there are stale cells and nothing is said of them.
    """
    states = {cell.name: cell.state for cell in cells}
    stale = [cell for cell in cells if states[cell.name] == "stale"]
    collect(table, cells, folder)
    if stale and not overwrite:
        raise ValueError(stale_message(stale))
    todo = [c for c in cells if states[c.name] != "finished" or (overwrite and c.is_outdated)]
    log.info("%s: %d of %d cells are finished", table.name, len(cells) - len(todo), len(cells))
    try:
        if todo:
            launch(todo, lambda cell: _tell(table, cells, folder, cell))
    finally:
        collect(table, cells, folder)
        if out is not None:
            publish(table.name, folder, out)
    return [cell for cell in todo if cell.state != "finished"]


def _tell(table: Table, cells: Sequence[Cell], folder: Path, cell: Cell) -> None:
    log.info("%s: %s", cell.name, cell.state)
    collect(table, cells, folder)


def dry_run_lines(cells: Sequence[Cell]) -> list[str]:
    """Each cell with its state and its optimizer steps by stage."""
    lines = []
    for cell in cells:
        steps = ", ".join(f"{stage} {n}" for stage, n in cell.steps.items())
        lines.append(
            f"{cell.name:32s} {cell.state:9s} {sum(cell.steps.values()):8d} steps: {steps}"
        )
    left = [cell for cell in cells if cell.state != "finished"]
    total = sum(sum(cell.steps.values()) for cell in left)
    lines.append(
        f"{len(left)} of {len(cells)} cells to run, {total} steps; stages that other cells or "
        "tables share are run once"
    )
    return lines


def failure_lines(failed: Sequence[Cell]) -> list[str]:
    """Each failed cell with where to read why."""
    lines = []
    for cell in failed:
        path = cell.folder / ERROR
        last = path.read_text().strip().splitlines()[-1] if path.is_file() else "did not finish"
        lines.append(f"{cell.name}: {last}\n    {path if path.is_file() else cell.folder}")
    return lines
