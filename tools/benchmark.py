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
from omegaconf import DictConfig

from handmim.pipelines.preflight import preflight
from handmim.utils.config import resolved
from handmim.utils.entry import compose, plain_tool, tool

CONFIGS = Path(__file__).parents[1] / "configs"


@tool("benchmark")
def main(cfg: DictConfig) -> None:
    """Run the suites, print each when it is done, and perhaps write."""
    plain = resolved(cfg)
    preflight(cfg)

    import cv2
    import torch

    from benchmark.race import Bench
    from benchmark.table import machine_facts, print_rows, write_rows
    from handmim.utils.config import build

    torch.set_num_threads(plain["num_threads"])
    cv2.setNumThreads(plain["num_threads"])
    try:
        device = torch.device(plain["device"])
    except RuntimeError as error:
        raise ValueError(f"device={plain['device']}: cpu, cuda or cuda:N is required") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no GPU: device=cpu")
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


@plain_tool
def estimate_run() -> None:
    """Print what a config of pretrain.py or finetune.py will take on this machine."""
    parser = argparse.ArgumentParser(description="what a run will take before it starts")
    parser.add_argument("--estimate", choices=("pretrain", "finetune"), required=True)
    parser.add_argument("overrides", nargs="*", help="the words of that tool")
    args = parser.parse_intermixed_args()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(args.estimate, args.overrides)

    from rich.console import Console

    from benchmark.estimate import estimate, estimate_table

    Console().print(estimate_table(estimate(cfg)))


if __name__ == "__main__":
    if any(word.startswith("--estimate") for word in sys.argv[1:]):
        estimate_run()
    else:
        main()
