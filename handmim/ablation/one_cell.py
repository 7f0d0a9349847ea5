"""One cell of a composed config of tables, in the process that runs it."""

from dataclasses import replace

from omegaconf import DictConfig

from handmim.ablation.cell import run_cell
from handmim.ablation.plan import Compose, plan
from handmim.ablation.runner import asked_table, stage_store, table_folder
from handmim.ablation.stages import Stages


def run_one_cell(cfg: DictConfig, compose: Compose) -> None:
    """Run the cell `cell=ROW/SEED` of a table.

    Args:
        cfg: composed from configs/ablate.yaml or configs/label_efficiency.yaml.
        compose: (config name, overrides) -> config.
    Raises: ValueError for a name that is not of the table; what fails in the cell.
    """
    table = asked_table(cfg)
    cells = {f"{row.name}/{seed}": (row, seed) for row in table.rows for seed in table.seeds}
    if cfg.cell not in cells:
        raise ValueError(
            f"no cell {cfg.cell!r} in this table, it has {sorted(cells)} (cell=ROW/SEED)"
        )
    row, seed = cells[cfg.cell]
    alone = replace(table, rows=(row,), chosen=(row.name,), seeds=(seed,))
    store = stage_store(cfg)
    (cell,) = plan(alone, table_folder(cfg), compose, store).chosen()
    run_cell(cell, Stages(compose, store), cfg.overwrite)
