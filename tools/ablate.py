"""Fill an ablation table: python tools/ablate.py --help"""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from handmim.ablation.command import fill_table
from handmim.utils.entry import compose, tool

CELL_TOOL = Path(__file__).parent / "ablate_cell.py"


@tool("ablate")
def main(cfg: DictConfig) -> int:
    """Plan, run what is missing, write the table, name what failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    done = fill_table(cfg, HydraConfig.get(), compose, CELL_TOOL)
    print(done.text)
    return done.code


if __name__ == "__main__":
    main()
