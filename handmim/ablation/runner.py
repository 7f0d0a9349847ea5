"""From a composed config of tables (configs/ablate.yaml, ...) to a finished table."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from handmim.ablation.cell import stale_message
from handmim.ablation.collect import collect
from handmim.ablation.inits import with_inits
from handmim.ablation.plan import ERROR, Cell, Compose, Plan, plan
from handmim.ablation.publish import publish
from handmim.ablation.store import StageStore
from handmim.ablation.table import Row, Table, read_table
from handmim.pipelines.preflight import path_problems
from handmim.utils.messages import sentence

log = logging.getLogger(__name__)

# (cells, to be told of each that ended)
Launch = Callable[[Sequence[Cell], Callable[[Cell], None]], None]


def table_folder(cfg: DictConfig) -> Path:
    """<run_root>/ablations/<name of the table, its setting and its budget>."""
    return Path(cfg.paths.run_root).absolute() / "ablations" / cfg.name


def stage_store(cfg: DictConfig) -> StageStore:
    """<run_root>/ablations/stages: of all tables."""
    return StageStore(Path(cfg.paths.run_root) / "ablations" / "stages")


def asked_table(cfg: DictConfig) -> Table:
    """The table of a config, with rows of its own or one for each of its `inits`."""
    return read_table(with_inits(cfg) if "inits" in cfg else cfg)


def read_plan(cfg: DictConfig, compose: Compose) -> Plan:
    """The table and all its cells, every override tried."""
    return plan(asked_table(cfg), table_folder(cfg), compose, stage_store(cfg))


def check_inputs(cfg: DictConfig, plan: Plan, compose: Compose) -> None:
    """Refuse a table of which a cell that is to be run would not find its files, or of which a part
    refuses its settings.

    Args:
        cfg: composed, of the table.
        plan: of the table.
        compose: (config name, overrides) -> config; it gives what it gave for the plan.
    Raises: ValueError naming each key, its path and what is required.
    """
    rows: dict[str, list[str]] = {}
    todo = [cell for cell in plan.chosen() if cell.needs_run(cfg.overwrite)]
    for cell in todo:
        for problem in cell.problems:
            rows.setdefault(problem, []).append(cell.row.name)
    if not rows:
        for row in {cell.row.name: cell.row for cell in todo}.values():
            _try_row(row, compose)
        return
    # The table's own keys, where they say it all.
    found = path_problems(cfg, parse=True) or [
        f"{problem} (rows {', '.join(dict.fromkeys(names))})" for problem, names in rows.items()
    ]
    raise ValueError("; ".join(found))


def _try_row(row: Row, compose: Compose) -> None:
    from handmim.pipelines.trial import try_parts, try_task  # they load torch

    for stage, words in (("pretrain", row.pretrain), ("finetune", row.finetune)):
        cfg = compose(stage, list(words))
        try:
            try_parts(cfg)
            try_task(cfg)
        except (ValueError, OSError) as error:
            raise ValueError(f"row {row.name}, {stage}: {sentence(error)}") from error


def run_table(
    plan: Plan, launch: Launch, overwrite: bool = False, out: Path | None = None
) -> list[Cell]:
    """Run what is chosen and not finished; the table is written before, in between and after.

    Args:
        plan: of the table.
        launch: runs cells; one that fails does not stop the others.
        overwrite: run stale and outdated cells again.
        out: folder that takes copies of the table's files; None for none.
    Returns: cells that failed.
    Raises: ValueError when there are stale cells and nothing is said of them.
    """
    cells = plan.chosen()
    collect(plan)
    stale = [cell for cell in cells if cell.state == "stale"]
    if stale and not overwrite:
        raise ValueError(stale_message(stale))
    todo = [cell for cell in cells if cell.needs_run(overwrite)]
    done = len(cells) - len(todo)
    log.info("%s: %d of %d cells are finished", plan.table.name, done, len(cells))
    try:
        if todo:
            launch(todo, lambda cell: _tell(plan, cell))
    finally:
        collect(plan)
        if out is not None:
            publish(plan.table.name, plan.folder, out)
    return [cell for cell in todo if cell.needs_run(overwrite)]


def _tell(plan: Plan, cell: Cell) -> None:
    log.info("%s: %s", cell.name, cell.state)
    collect(plan)


def dry_run_lines(cells: Sequence[Cell], overwrite: bool = False) -> list[str]:
    """What `run_table` would do: each cell with its state and its optimizer steps by stage.

    Args:
        cells: that are chosen.
        overwrite: as `run_table` takes it.
    """
    lines = []
    for cell in cells:
        steps = ", ".join(f"{stage} {n}" for stage, n in cell.steps.items())
        state = cell.state
        if state == "finished" and cell.is_outdated:
            state = "outdated"
        lines.append(f"{cell.name:32s} {state:9s} {sum(cell.steps.values()):8d} steps: {steps}")
    stale = [cell for cell in cells if cell.state == "stale"]
    if stale and not overwrite:
        return [*lines, "nothing would run:", stale_message(stale)]
    left = [cell for cell in cells if cell.needs_run(overwrite)]
    total = sum(sum(cell.steps.values()) for cell in left)
    lines.append(
        f"{len(left)} of {len(cells)} cells to run, {total} steps; stages that other cells or "
        "tables share, or that are finished, are not run again"
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
