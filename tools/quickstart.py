"""The whole chain on the embedded default: render, pretrain, fine-tune twice, score, report.

python tools/quickstart.py
python tools/quickstart.py --seed 1 --name other data.num_train=4000

Overrides are for pretraining and both fine-tunes.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from handmim.reports.quickstart import COLUMNS, LABELS, LIMIT, SECONDS, write_report
from handmim.utils.entry import plain_tool
from handmim.utils.files import write_atomic
from handmim.utils.overrides import given_path
from handmim.utils.processes import start_child
from handmim.utils.tables import print_metrics

TOOLS = Path(__file__).parent
NUM_STAGES = 6


def stage(number: int, script: str, *overrides: str) -> float:
    """Run one of the tools as a user would; returns its seconds."""
    command = [sys.executable, str(TOOLS / script), *overrides, "overwrite=true"]
    text = f"$ python tools/{script} {' '.join(command[2:])}"
    print(f"\n[{number} of {NUM_STAGES}] {text}", flush=True)
    began = time.perf_counter()
    with start_child(command) as process:
        code = process.wait()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return time.perf_counter() - began


@plain_tool
def main() -> None:
    """Every step is one of the documented commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="quickstart", help="folder below runs/")
    parser.add_argument("overrides", nargs="*", help="for example data.num_train=4000")
    args = parser.parse_args()
    name, common = args.name, [f"seed={args.seed}", *args.overrides]
    roots = [o.split("=", 1)[1] for o in args.overrides if o.startswith("paths.run_root=")]
    root = given_path(roots[-1] if roots else "runs")
    folder = root / name
    machine = [o for o in args.overrides if o.startswith(("machine.", "paths.run_root="))]
    print("render, pretrain, fine-tune twice, score: by default 5 to 12 minutes on two CPU cores")
    began = time.perf_counter()
    seconds = {}
    experiment = "experiment=quickstart_pretrain"
    pretrain = stage(1, "pretrain.py", experiment, f"name={name}/pretrain", *common)
    recipe = ["experiment=quickstart_finetune", *common]
    seconds["scratch"] = stage(2, "finetune.py", *recipe, f"name={name}/scratch")
    init = f"init_from={folder / 'pretrain' / 'backbone.safetensors'}"
    seconds["handmim"] = pretrain + stage(3, "finetune.py", *recipe, f"name={name}/handmim", init)
    rows = []
    for row, source, predictor in (
        ("mean_hand", "scratch", "mean_hand"),
        ("scratch", "scratch", "model"),
        ("handmim", "handmim", "model"),
    ):
        checkpoint = f"checkpoint={folder / source / 'last.pt'}"
        words = [f"name={name}/eval_{row}", f"predictor={predictor}", "machine.num_threads=1"]
        stage(4 + len(rows), "eval.py", checkpoint, *words, *machine)
        figures = json.loads((folder / f"eval_{row}" / "metrics.json").read_text())
        rows.append({"name": row, "seconds": seconds.get(row, 0.0), **figures})
    total = time.perf_counter() - began
    rows = [{**row, "seed": args.seed, "total_seconds": total} for row in rows]
    write_atomic(folder / "summary.json", json.dumps(rows, indent=2) + "\n")
    report = write_report(folder, rows)
    title = f"Quickstart, seed {args.seed}, {total:.0f} s in all"
    print_metrics({LABELS[r["name"]]: r for r in rows}, COLUMNS, title)
    print(f"{SECONDS}\n\n{LIMIT}\n\nreport: {report}")


if __name__ == "__main__":
    main()
