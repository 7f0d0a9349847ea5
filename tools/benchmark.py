"""Speed of the parts against plain references, measured side by side.

python tools/benchmark.py suite=hand
python tools/benchmark.py suite=all json=speed.json

Time and memory of a run before it starts; cost of methods relative to the first one:

python tools/benchmark.py --estimate finetune experiment=quickstart_finetune
python tools/benchmark.py --methods handmim,ibot --steps 5 experiment=cpu_base
"""

import argparse
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from handmim.pipelines.preflight import preflight
from handmim.utils.arguments import one_of
from handmim.utils.config import resolved
from handmim.utils.entry import compose, tool
from handmim.utils.paths import CONFIGS

ALL_METHODS = "handmim,handmim-plain,ibot,dino,swav,lejepa,peclr,simmim,mae"
ALL = ("step", "data", "loader", "hand", "head", "score", "inference", "render")  # for a CPU


@tool("benchmark")
def main(cfg: DictConfig) -> None:
    """Run the suites, print each when it is done, and perhaps write."""
    plain = resolved(cfg)
    preflight(cfg)
    suites = [plain["suite"]] if isinstance(plain["suite"], str) else plain["suite"]
    suites = list(ALL) if suites == ["all"] else suites
    for suite in suites:
        one_of("suite", suite, ("all", *plain["suites"]))

    import cv2
    import torch

    from benchmark.core import Bench, device_of
    from benchmark.table import machine_metadata, print_rows, write_rows
    from handmim.utils.config import build

    torch.set_num_threads(plain["num_threads"])
    cv2.setNumThreads(plain["num_threads"])
    bench = Bench(device_of(plain["device"]), plain["rounds"])
    if plain["json"] is not None:
        Path(plain["json"]).parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for suite in suites:
        for found in build(cfg.suites[suite])(bench):
            print_rows(found)
            rows += found
    if plain["json"] is not None:
        write_rows(Path(plain["json"]), rows, machine_metadata(bench.device))


@tool()
def measure_configs() -> None:
    """Print the cost of configs of pretrain.py or finetune.py on this machine."""
    parser = argparse.ArgumentParser(description="the cost of a run before it starts")
    parser.add_argument("--estimate", choices=("pretrain", "finetune"), help="time and memory")
    parser.add_argument("--methods", help="all, or names with commas: relative to the first one")
    parser.add_argument("--steps", type=int, default=15, help="of each method, after one more")
    parser.add_argument("overrides", nargs="*", help="of that tool, for all methods")
    args = parser.parse_intermixed_args()
    if args.steps < 1:
        parser.error(f"--steps must be >= 1, got {args.steps}")
    methods = (ALL_METHODS if args.methods == "all" else args.methods or "").split(",")
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        base = compose(args.estimate, args.overrides) if args.estimate else None
        configs = {m: compose("pretrain", [f"method={m}", *args.overrides]) for m in methods if m}

    from rich.console import Console

    from benchmark.estimate import compare_methods, estimate, estimate_table

    if base is not None:
        Console().print(estimate_table(estimate(base)))
    if configs:
        Console().print(compare_methods(configs, args.steps))


if __name__ == "__main__":
    if any(word.startswith(("--estimate", "--methods", "--steps")) for word in sys.argv[1:]):
        measure_configs()
    else:
        main()
