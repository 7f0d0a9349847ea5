"""Work beside training, now and then: probing, validating, detecting collapse."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from handmim.engine.workers import beat
from handmim.types import StepInfo
from handmim.utils.run import Run


class StopRun(Exception):  # noqa: N818  it ends a run as a signal does, nothing is broken
    """Raised by a hook to end the run, which is saved first.

    Args:
        reason: one line for the log and run.json.
        scalars: what the hook would have returned.
    """

    def __init__(self, reason: str, scalars: dict[str, float] | None = None) -> None:
        super().__init__(reason)
        self.scalars = scalars or {}


class Hook(Protocol):
    """Called every so many steps. It may have a method `images(task, run) -> {name: [H, W, 3]
    uint8}`, drawn with the task's."""

    every: int | None  # steps; None = only at the end
    at_start: bool  # also before the first step

    def __call__(self, task: nn.Module, info: StepInfo, run: Run) -> dict[str, float]:
        """Scalars to log.

        Raises: StopRun to end the run.
        """
        ...


def call_hooks(
    hooks: Sequence[Hook], task: nn.Module, info: StepInfo, run: Run
) -> tuple[dict[str, float], str | None]:
    """Run hooks in eval mode without gradients, then go back to training.

    Returns: scalars of the main process, and why the run should stop: the same on all processes.
    Raises: what a hook of any process raises, on all of them.
    """
    scalars: dict[str, float] = {}
    reason: str | None = None
    if not hooks:
        return scalars, reason
    task.eval()
    with run.together(), torch.no_grad():
        for hook in hooks:
            beat(f"{type(hook).__name__} after step", info.step)
            try:
                scalars |= hook(task, info, run)
            except StopRun as stop:
                scalars |= stop.scalars
                reason = reason or str(stop)
    task.train()
    scalars = run.fabric.broadcast(scalars)
    if run.any_rank(reason is not None):
        return scalars, reason or "stopped by another process"
    return scalars, None


def draw(
    task: nn.Module, batch: Any, hooks: Sequence[Hook], run: Run
) -> dict[str, NDArray[np.uint8]]:
    """Images of the task, and of every hook that has some."""
    images = dict(task.images(batch))  # type: ignore[operator]
    task.eval()
    for hook in hooks:
        if hasattr(hook, "images"):
            images |= hook.images(task, run)
    task.train()
    return images
