"""One cell of a composed configs/ablate.yaml, in the process that runs it."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from handmim.ablation.cell import run_cell
from handmim.ablation.plan import Compose, plan
from handmim.ablation.runner import table_folder
from handmim.ablation.stages import Stages
from handmim.ablation.store import StageStore
from handmim.ablation.table import read_table


def run_one_cell(cfg: DictConfig, compose: Compose) -> None:
    """Run the cell `cell=ROW/SEED` of a table.

    Args:
        cfg: composed from configs/ablate.yaml.
        compose: (config name, overrides) -> config.
    Raises: ValueError for a name that is not of the table; what fails in the cell.
    """
    table = read_table(cfg)
    cells = {f"{row.name}/{seed}": (row, seed) for row in table.rows for seed in table.seeds}
    if cfg.cell not in cells:
        raise ValueError(
            f"no cell {cfg.cell!r} in this table, it has {sorted(cells)} (cell=ROW/SEED)"
        )
    row, seed = cells[cfg.cell]
    (cell,) = plan(replace(table, rows=(row,), seeds=(seed,)), table_folder(cfg), compose)
    store = StageStore(Path(cfg.paths.run_root) / "ablations" / "stages")
    run_cell(cell, Stages(compose, store), cfg.overwrite)
