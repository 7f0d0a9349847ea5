"""Cost of regression heads beside their backbone; random pictures, no data.

python tools/benchmark_heads.py backbone=vit_small_p16
python tools/benchmark_heads.py --heads pymaf_small,plain_small --batch 24 backbone=vit_nano_p8
python tools/benchmark_heads.py --batch 64 backbone=vit_small_p16 machine.accelerator=cuda # a GPU

On a CPU with one thread, by process time; else by wall time.
"""

import argparse
import statistics
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

CONFIGS = Path(__file__).parents[1] / "configs"
HEADS = "pymaf,pymaf_exact,iterative,decoder,plain"


def main() -> None:
    """Measure head by head, each in turn with its backbone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="of configs/finetune.yaml, for all heads")
    parser.add_argument("--heads", default=HEADS, help="files of configs/head, commas between")
    parser.add_argument("--turns", type=int, default=5, help="of each, after one to warm up")
    parser.add_argument("--batch", type=int, default=4, help="pictures at a time")
    args = parser.parse_intermixed_args()
    for name in ("turns", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(args, name)}")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        configs = {
            h: compose("finetune", [f"head={h}", *args.overrides]) for h in args.heads.split(",")
        }

    import torch
    from lightning.fabric import Fabric

    from handmim.pipelines.head_cost import head_cost

    accelerator = next(iter(configs.values())).machine.accelerator
    device = Fabric(accelerator=accelerator, devices=1).device
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    table = Table("head", "M params", "GFLOP", "share", "time", "range")
    table.caption = "GFLOP of a picture forward; share and time (forward and backward): of backbone"
    for name, cfg in configs.items():
        cost = head_cost(cfg, args.batch, args.turns, device)
        table.add_row(
            name,
            f"{cost.parameters / 1e6:.2f}",
            f"{cost.flops / 1e9:.3f}",
            f"{cost.flops / cost.backbone_flops:.3f}",
            f"{statistics.median(cost.ratios):.2f}",
            f"{min(cost.ratios):.2f} to {max(cost.ratios):.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
