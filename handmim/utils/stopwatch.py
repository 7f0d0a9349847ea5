"""Time of repeated work on a device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
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

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
