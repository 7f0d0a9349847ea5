"""Cost of a pretraining step by method, relative to the first one; random pictures, no data.

python tools/benchmark_methods.py experiment=cpu_base
python tools/benchmark_methods.py --steps 5 backbone=vit_small_p16 trainer.batch_size=2
python tools/benchmark_methods.py --steps 30 machine.precision=bf16-mixed    # a GPU, ViT-B/16

On a CPU with one thread, by process time; else by wall time.
"""

import argparse
import statistics
from pathlib import Path

from hydra import initialize_config_dir
from rich.console import Console
from rich.table import Table

from handmim.utils.entry import compose, plain_tool

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = "handmim,handmim-plain,ibot,dino,peclr,simmim,mae"


@plain_tool
def main() -> None:
    """Measure the methods interleaved, so that a noisy machine disturbs all of them alike."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="of configs/pretrain.yaml, for all methods")
    parser.add_argument("--methods", default=METHODS, help="commas between; first: the measure")
    parser.add_argument("--steps", type=int, default=15, help="of each, after one to warm up")
    args = parser.parse_intermixed_args()
    if args.steps < 1:
        parser.error(f"--steps must be >= 1, got {args.steps}")
    names = args.methods.split(",")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        configs = {m: compose("pretrain", [f"method={m}", *args.overrides]) for m in names}

    import torch
    from lightning_fabric import Fabric

    from handmim.pipelines.dry_run import dry_run_step
    from handmim.utils.timer import work_clock

    machine = configs[names[0]].machine
    fabric = Fabric(accelerator=machine.accelerator, devices=1, precision=machine.precision)
    on_cpu = fabric.device.type == "cpu"
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    clock = work_clock(fabric.device)
    steps = {name: dry_run_step(cfg, fabric) for name, cfg in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.steps + 1):
        for name in names:
            began = clock()
            steps[name][0](number)
            seconds[name].append(clock() - began)
    base = statistics.median(seconds[names[0]][1:])
    unit = "median CPU-ms" if on_cpu else "median ms"
    table = Table("method", unit, "relative", "range", "M parameters")
    for name in names:
        times = sorted(s / base for s in seconds[name][1:])
        ratio = statistics.median(times)
        spread = f"{times[0]:.2f} to {times[-1]:.2f}"
        ms = f"{1e3 * ratio * base:.0f}"
        table.add_row(name, ms, f"{ratio:.2f}", spread, f"{steps[name][1]:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
