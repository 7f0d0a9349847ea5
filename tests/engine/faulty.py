"""Data that goes wrong in loader workers, and the program that a test starts and kills."""

import os
import signal
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch.utils.data import Dataset

from handmim.engine.loader import PrefetchingLoader, StepBatches
from handmim.utils.files import UnreadableSample
from tests.engine.toy import DATA, collate, prepare

HELD: list = []  # there until the interpreter takes modules apart


class Faulty(Dataset):
    """The toy samples; those at `indices` do something else as long as the file `flag` is there.

    Args:
        fault: "unreadable" and "error" raise, "dies" ends the process, "blocks" never returns,
            "unpicklable" raises what no process can send.
        flag: None is always.
    """

    def __init__(self, fault: str, indices: tuple[int, ...], flag: Path | None = None) -> None:
        self.fault, self.indices, self.flag = fault, indices, flag

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index in self.indices and (self.flag is None or self.flag.is_file()):
            if self.fault == "unreadable":
                raise UnreadableSample(f"{index}.jpg", "cut short")
            if self.fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "blocks":
                time.sleep(600)
            if self.fault == "unpicklable":
                raise OddError(index, "odd")
            raise KeyError(f"no label for {index}.jpg")
        return DATA[index]


class OddError(Exception):
    """Made of two arguments, kept as one: it cannot be made again from what it keeps."""

    def __init__(self, index: int, text: str) -> None:
        super().__init__(f"{text} {index}")


def loader_of(data: Dataset, num_workers: int, end: int = 10, **kwargs) -> PrefetchingLoader:
    fabric = Fabric(accelerator="cpu", devices=1)
    sizes = {"batch_size": 4, "total_steps": end, "num_workers": num_workers}
    return PrefetchingLoader(fabric, data, collate, prepare, **sizes, **kwargs)


def begin_after_opencv() -> None:
    """Use OpenCV's threads here, then load by two workers; print their ids, and wait."""
    import cv2
    import numpy as np

    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)
    loading = loader_of(DATA, 2, end=200)
    loading.batch_of(0)
    sys.stdout.write(" ".join(str(worker.pid) for worker in active_children()) + "\n")
    sys.stdout.flush()
    time.sleep(600)


def train_until_stalled(folder: str, num_workers: str, limit_s: str) -> None:
    """Train with a limit on how long nothing may move, to a sample of step 2 that never comes."""
    from handmim.engine.trainer import Trainer
    from handmim.utils.entry import run_tool
    from handmim.utils.run import Run
    from tests.engine.toy import ToyTask, optimizer_config

    first, second, third = map(StepBatches(DATA, collate, None, 4, 10, 0).indices, range(3))

    def train() -> None:
        run = Run.start("toy", folder, 0, {}, accelerator="cpu", stall_timeout_s=float(limit_s))
        data = Faulty("blocks", tuple({*third} - {*first, *second}))
        Trainer(max_steps=10, batch_size=4, num_workers=int(num_workers)).fit(
            run, ToyTask(), data, collate, prepare, optimizer_config()
        )

    run_tool(train)


def leave_while_loading() -> None:
    """End the interpreter while a generator holds workers that never answer."""
    HELD.append(iter(loader_of(Faulty("blocks", (3,)), 1, end=100)))
    next(HELD[0])
