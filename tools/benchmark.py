"""Speed of the parts against plain references, measured side by side.

python tools/benchmark.py suite=hand
python tools/benchmark.py suite=all json=speed.json
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from handmim.utils.config import resolved


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    """Run the suites, print each when it is done, and perhaps write."""
    plain = resolved(cfg)

    import cv2
    import torch
    from hydra.utils import instantiate

    from handmim.speed.race import Bench
    from handmim.speed.table import machine_facts, print_rows, write_rows

    torch.set_num_threads(plain["num_threads"])
    cv2.setNumThreads(plain["num_threads"])
    bench = Bench(torch.device(plain["device"]), plain["rounds"])
    rows = []
    for suite in instantiate(cfg.suites).values():
        for found in suite(bench):
            print_rows(found)
            rows += found
    if plain["json"] is not None:
        write_rows(Path(plain["json"]), rows, machine_facts(bench.device))


if __name__ == "__main__":
    main()
