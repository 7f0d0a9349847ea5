"""Fill an ablation table: python tools/ablate.py --help"""

import logging
import sys
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from handmim.ablation.launch import local_pool, multirun, terminated_as_interrupt
from handmim.ablation.runner import (
    dry_run_lines,
    failure_lines,
    read_plan,
    run_table,
)

CELL_TOOL = Path(__file__).parent / "ablate_cell.py"
INTERRUPTED = 130


@hydra.main(version_base="1.3", config_path="../configs", config_name="ablate")
def main(cfg: DictConfig) -> None:
    """Plan, run what is missing, write the table, name what failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    plan = read_plan(cfg, hydra.compose)
    if cfg.dry_run:
        print("\n".join(dry_run_lines(plan.chosen(), cfg.overwrite)))
        return
    said = HydraConfig.get().overrides
    words = list(said.task)
    if cfg.jobs > 1:
        launch = partial(local_pool, CELL_TOOL, words, jobs=cfg.jobs)
    else:
        words += [word for word in said.hydra if not word.startswith("hydra.mode=")]
        launch = partial(multirun, CELL_TOOL, words)
    folder, out = plan.folder, None if cfg.out is None else Path(cfg.out)
    try:
        with terminated_as_interrupt():
            failed = run_table(plan, launch, cfg.overwrite, out)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on. So far: {folder / 'table.md'}")
        sys.exit(INTERRUPTED)
    print((folder / "table.md").read_text())
    print(f"table: {folder}")
    if failed:
        print(f"{len(failed)} cells failed, the same command tries them again:")
        print("\n".join(failure_lines(failed)))
        sys.exit(1)


if __name__ == "__main__":
    main()
