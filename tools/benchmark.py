"""Speed of the parts against plain references, measured side by side.

python tools/benchmark.py suite=hand
python tools/benchmark.py suite=all json=speed.json

What a run will take before it starts, time and memory, from a few steps at small batches:

python tools/benchmark.py --estimate pretrain backbone=vit_small_p16 data=synthetic
python tools/benchmark.py --estimate finetune experiment=quickstart_finetune
"""

import argparse
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from handmim.utils.config import resolved

CONFIGS = Path(__file__).parents[1] / "configs"


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    """Run the suites, print each when it is done, and perhaps write."""
    plain = resolved(cfg)

    import cv2
    import torch

    from handmim.speed.race import Bench
    from handmim.speed.table import machine_facts, print_rows, write_rows
    from handmim.utils.build import build

    torch.set_num_threads(plain["num_threads"])
    cv2.setNumThreads(plain["num_threads"])
    device = torch.device(plain["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("device=cuda, but torch finds no GPU: device=cpu")
    if plain["json"] is not None:
        Path(plain["json"]).parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(device, plain["rounds"])
    rows = []
    for suite in build(cfg.suites).values():
        for found in suite(bench):
            print_rows(found)
            rows += found
    if plain["json"] is not None:
        write_rows(Path(plain["json"]), rows, machine_facts(bench.device))


def estimate(words: list[str]) -> None:
    """Print what a config of pretrain.py or finetune.py will take on this machine."""
    parser = argparse.ArgumentParser(description="what a run will take before it starts")
    parser.add_argument("--estimate", choices=("pretrain", "finetune"), required=True)
    parser.add_argument("overrides", nargs="*", help="the words of that tool")
    args = parser.parse_intermixed_args(words)
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose(args.estimate, args.overrides)

        from rich.console import Console

        from handmim.speed.estimate import estimate, estimate_table

        Console().print(estimate_table(estimate(cfg)))
    except (HydraException, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    if any(word.startswith("--estimate") for word in sys.argv[1:]):
        estimate(sys.argv[1:])
    else:
        main()
