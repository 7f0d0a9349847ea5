"""A folder with tiny data, and the commands of a user that train, score, pack and render on it."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import load_file

from faults.children import Child
from handmim.utils.json_files import read_rows

NUM_CROPS, CROP_PX = 24, 64
PARTIAL = re.compile(r"\..+\.\d+|\..+\.tmp")
TRAINED = ("pretraining", "fine-tuning")
BACKBONE, LAST = "backbone.safetensors", "last.pt"


class Workplace:
    """Data and runs of a campaign.

    Args:
        folder: empty or new; takes crops/, data/, runs/ and the output of every child.
        limit_s: seconds after which a child counts as hung.
        num_workers: loader processes of every child.
    """

    def __init__(self, folder: Path, limit_s: float, num_workers: int = 2) -> None:
        self.folder, self.limit_s, self.num_workers = folder.absolute(), limit_s, num_workers
        self.num_children = 0
        crops = self.folder / "crops"
        crops.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for i in range(NUM_CROPS):
            coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            smooth = cv2.resize(coarse, (CROP_PX, CROP_PX), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(crops / f"{i:03d}.png"), smooth)

    def command(self, kind: str, name: str, *, steps: int = 2, save_every: int = 1) -> list[str]:
        """The command of a kind of work.

        Args:
            kind: pretraining, fine-tuning, evaluation, packing or rendering.
            name: of the run, or of the file or folder that is made.
            steps, save_every: of training.
        """
        runs = [f"paths.run_root={self.folder / 'runs'}", f"paths.data_dir={self.folder / 'data'}"]
        common = [*runs, f"name={name}", "machine.accelerator=cpu", "machine.num_threads=null"]
        training = [
            f"trainer.max_steps={steps}",
            f"trainer.save_every={save_every}",
            "trainer.batch_size=4",
            "trainer.log_every=1",
            "trainer.image_every=null",
            f"trainer.num_workers={self.num_workers}",
        ]
        rendered = [
            "data.num_train=16",
            "data.num_val=8",
            f"data.num_workers={self.num_workers}",
            "data.scene.image_px=48",
        ]
        if kind == "pretraining":
            data = [f"data.root={self.folder / 'crops'}", f"data.image_px={CROP_PX}"]
            return ["pretrain.py", "experiment=cpu_pretrain", *data, *common, *training]
        if kind == "fine-tuning":
            experiment = ["experiment=quickstart_finetune", "num_labels=8", "eval_every=2"]
            return ["finetune.py", *experiment, *rendered, *common, *training]
        if kind == "evaluation":
            last = self.run_dir("base") / LAST
            return ["eval.py", f"checkpoint={last}", f"num_workers={self.num_workers}", *common]
        if kind == "packing":
            target = self.folder / f"{name}.crops"
            return ["pack_crops.py", str(self.folder / "crops"), str(target), "--image-px", "48"]
        if kind == "rendering":
            size = ["num=4", "num_eval=0", f"num_workers={self.num_workers}"]
            return ["synthesize.py", "format=folder", f"root={self.folder / name}", *size]
        raise ValueError(f"no kind of work {kind!r}")

    def run_dir(self, name: str) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / name

    def start(self, command: list[str]) -> Child:
        """Start a command as a child with a mark of its own."""
        self.num_children += 1
        mark = f"{self.folder.name}-{os.getpid()}-{self.num_children:04d}"
        return Child(command, self.folder, mark)

    def make(self, command: list[str], name: str) -> Child:
        """Run a command that has to succeed, replacing what its name holds.

        Raises: RuntimeError with the end of its output.
        """
        self.forget(name)
        child = self.start(command)
        code = child.wait(self.limit_s)
        if code != 0:
            raise RuntimeError(f"{command[0]} ended with {code}: {child.text[-2000:]}")
        return child

    def forget(self, name: str) -> None:
        """Delete what a command made under a name."""
        for path in (self.run_dir(name), self.folder / name):
            shutil.rmtree(path, ignore_errors=True)
        (self.folder / f"{name}.crops").unlink(missing_ok=True)


def partial_files(folder: Path) -> list[str]:
    """Files below a folder that a process left half written, by their names."""
    return sorted(p.name for p in folder.rglob(".*") if p.is_file() and PARTIAL.fullmatch(p.name))


def difference(one: Path, two: Path) -> str:
    """What differs between two finished runs, bit for bit; "" for nothing.

    Compared are the weights of the last checkpoint and of the exported backbone, and all scalars
    but speeds.
    """
    states = [torch.load(folder / LAST, weights_only=True)["task"] for folder in (one, two)]
    if found := _tensor_difference(states[0], states[1]):
        return f"{LAST}: {found}"
    backbones = [folder / BACKBONE for folder in (one, two)]
    if backbones[0].is_file() != backbones[1].is_file():
        return f"{BACKBONE} is in one of the folders"
    if backbones[0].is_file():
        found = _tensor_difference(load_file(backbones[0]), load_file(backbones[1]))
        if found:
            return f"{BACKBONE}: {found}"
    rows = [_rows(folder) for folder in (one, two)]
    for number, (a, b) in enumerate(zip(*rows, strict=False)):
        if repr(sorted(a.items())) != repr(sorted(b.items())):  # NaN equals NaN
            return f"scalars: row {number} is {str(a)[:200]} and {str(b)[:200]}"
    return "" if len(rows[0]) == len(rows[1]) else f"scalars: {len(rows[0])}, {len(rows[1])} rows"


def _rows(folder: Path) -> list[dict[str, float]]:
    rows = read_rows(folder / "scalars.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


def _tensor_difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    if set(one) != set(two):
        return f"names {sorted(set(one) ^ set(two))[:3]}"
    for name, a in one.items():
        b = two[name]
        if not (torch.equal(a, b) if torch.is_tensor(a) else repr(a) == repr(b)):
            return name
    return ""
