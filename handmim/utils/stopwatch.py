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


class Stopwatch:
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
