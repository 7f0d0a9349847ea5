"""Draw the error against the number of labels: python tools/label_efficiency.py --help"""

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from handmim.ablation.command import fill_table

CELL_TOOL = Path(__file__).parent / "ablate_cell.py"


@hydra.main(version_base="1.3", config_path="../configs", config_name="label_efficiency")
def main(cfg: DictConfig) -> None:
    """Plan, run what is missing, write the table, name what failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    done = fill_table(cfg, HydraConfig.get(), hydra.compose, CELL_TOOL)
    print(done.text)
    if done.code:
        sys.exit(done.code)


if __name__ == "__main__":
    main()
