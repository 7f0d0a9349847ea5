"""Work on a device: timed batch by batch, or recorded once and replayed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

WARM_UPS = 3  # libraries choose and load their kernels in the first calls


def wait_for(device: torch.device) -> None:
    """Return once the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Stages:
    """Seconds of each stage of work, one stage after another; the device's queue is waited for at
    the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, list[tuple[float, int]]] = {}  # seconds and items of each batch
        self._began = 0.0

    def begin(self) -> None:
        """A batch begins."""
        wait_for(self.device)
        self._began = time.perf_counter()

    def done(self, stage: str, num_items: int) -> None:
        """What happened since the last call was this stage of a batch."""
        wait_for(self.device)
        now = time.perf_counter()
        self.laps.setdefault(stage, []).append((now - self._began, num_items))
        self._began = now

    @contextmanager
    def lap(self, num_items: int) -> Iterator[None]:
        """Time what happens inside as all the work of one batch."""
        self.begin()
        yield
        self.done("all", num_items)

    @property
    def seconds_per_item(self) -> dict[str, float]:
        """By stage, over all batches but the first, which warms up, unless there is no other."""
        timed = {stage: laps[1:] or laps for stage, laps in self.laps.items()}
        return {
            stage: sum(seconds for seconds, _ in laps) / sum(num for _, num in laps)
            for stage, laps in timed.items()
        }

    def __str__(self) -> str:
        """A line per stage and one of all: milliseconds per item and share."""
        seconds = self.seconds_per_item
        total = sum(seconds.values())
        width = max(map(len, [*seconds, "all"]))
        return "\n".join(
            f"{stage:<{width}} {1e3 * each:9.3f} ms {each / total:6.1%}"
            for stage, each in {**seconds, "all": total}.items()
        )


class Graphed(Generic[Result]):
    """A function of tensors on one CUDA device as a CUDA graph, for inputs of these shapes. The
    work does not wait for the device nor read memory of the host. Raises: ValueError."""

    def __init__(self, work: Callable[..., Result], inputs: Sequence[Tensor]) -> None:
        device = inputs[0].device
        if device.type != "cuda":
            raise ValueError(f"a CUDA graph needs tensors on a CUDA device, got {device}")
        self.inputs = [t.clone() for t in inputs]
        with torch.cuda.device(device):
            ahead = torch.cuda.Stream()
            ahead.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(ahead):
                for _ in range(WARM_UPS):
                    work(*self.inputs)
            torch.cuda.current_stream().wait_stream(ahead)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = work(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Result:
        """The result for other inputs; the next call writes over it."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.result
