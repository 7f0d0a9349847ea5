"""Work on a GPU recorded once and replayed, without the cost of launching its kernels."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

WARM_UPS = 3  # libraries choose and load their kernels in the first calls


class Graphed(Generic[Result]):
    """A function of tensors on one CUDA device as a CUDA graph, for inputs of the given shapes.

    The work may not wait for the device nor read memory of the host, and always does the same.

    Raises: ValueError for tensors of another device.
    """

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
