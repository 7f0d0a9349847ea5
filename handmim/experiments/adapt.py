"""Unlabeled photos and renders to an estimator for such photos: pretrain, then fine-tune."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handmim.engine.checkpoint import LAST
from handmim.pipelines.train import BACKBONE
from handmim.utils.entry import given_path
from handmim.utils.processes import start_child


def main() -> None:
    """Run both documented commands one after another; a finished pretraining is not repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=given_path, help="folder of unlabeled crops")
    parser.add_argument("--name", default="adapt", help="folder below --run-root")
    parser.add_argument("--run-root", type=given_path, default=Path("runs"))
    parser.add_argument("--seed", type=int, default=0)
    weights = "backbone.safetensors, instead of a pretraining on the photos"
    parser.add_argument("--init-from", type=given_path, help=weights)
    many: Any = {"nargs": "*", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--pretrain", help="overrides of the pretraining", **many)
    parser.add_argument("--finetune", help="overrides of the fine-tuning", **many)
    args = parser.parse_args()
    folder, photos = args.run_root / args.name, args.photos
    common = [f"seed={args.seed}", f"paths.run_root={args.run_root}", "resume=auto"]
    backbone = args.init_from or folder / "pretrain" / BACKBONE
    if args.init_from is None:
        own = [f"data.root={photos}", f"name={args.name}/pretrain"]
        _run(["pretrain", "experiment=cpu_adapt_pretrain", *own, *common, *args.pretrain])
    own = [f"unlabeled.data.root={photos}", f"name={args.name}/hand", f"init_from={backbone}"]
    _run(["finetune", "experiment=cpu_adapt_finetune", *own, *common, *args.finetune])
    print(f"\nestimator: handmim.load({str(folder / 'hand' / LAST)!r})")


def _run(arguments: Sequence[str]) -> None:
    print(f"\n$ handmim {' '.join(arguments)}", flush=True)
    program = [sys.executable, "-m", "handmim", *arguments]
    with start_child(program) as process:
        if code := process.wait():
            raise subprocess.CalledProcessError(code, program)
