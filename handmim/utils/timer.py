"""Time of work on a device."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def wait_for(device: torch.device) -> None:
    """Return once the device has done what it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def work_clock(device: torch.device) -> Callable[[], float]:
    """A clock for comparing costs, in seconds: process time on a CPU, which other processes do not
    lengthen, else wall time once the device is done."""
    if device.type == "cpu":
        return time.process_time

    def waited() -> float:
        wait_for(device)
        return time.perf_counter()

    return waited


class Timer:
    """Seconds per item of work that is done batch by batch.

    Args:
        device: whose queue is waited for before and after each batch.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[tuple[float, int]] = []  # seconds, items

    @contextmanager
    def lap(self, num_items: int) -> Iterator[None]:
        """Time what happens inside as the work of one batch."""
        wait_for(self.device)
        began = time.perf_counter()
        yield
        wait_for(self.device)
        self.laps.append((time.perf_counter() - began, num_items))

    @property
    def seconds_per_item(self) -> float:
        """Over all batches but the first, which warms up, unless there is no other.

        Raises: ValueError when nothing was timed.
        """
        laps = self.laps[1:] or self.laps
        if not laps:
            raise ValueError("nothing was timed")
        return sum(seconds for seconds, _ in laps) / sum(num for _, num in laps)


class Stages:
    """Seconds of each stage of work that is done batch by batch, one stage after another.

    Args:
        device: whose queue is waited for at the end of each stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.watches: dict[str, Timer] = {}
        self._began = 0.0

    def begin(self) -> None:
        """A batch begins."""
        wait_for(self.device)
        self._began = time.perf_counter()

    def done(self, stage: str, num_items: int) -> None:
        """What happened since the last call was this stage of a batch."""
        wait_for(self.device)
        now = time.perf_counter()
        watch = self.watches.setdefault(stage, Timer(self.device))
        watch.laps.append((now - self._began, num_items))
        self._began = now

    @property
    def seconds_per_item(self) -> dict[str, float]:
        """By stage, over all batches but the first, unless there is no other."""
        return {stage: watch.seconds_per_item for stage, watch in self.watches.items()}

    def __str__(self) -> str:
        """A line per stage and one of all: milliseconds per item and share."""
        seconds = self.seconds_per_item
        total = sum(seconds.values())
        width = max(map(len, [*seconds, "all"]))
        lines = [
            f"{stage:<{width}} {1e3 * each:9.3f} ms {each / total:6.1%}"
            for stage, each in {**seconds, "all": total}.items()
        ]
        return "\n".join(lines)
