"""One optimizer step: loss, backward, clipping, update; in several parts where memory is short.

Nothing here waits for the device: losses and norms stay there until somebody reads them.
"""

import logging
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from handmim.engine.optim import OptimizerConfig
from handmim.types import StepInfo, StepResult

log = logging.getLogger(__name__)


class Batch(Protocol):
    """What can be worked on in parts: `types.PretrainBatch`, `types.HandBatch`."""

    def part(self, start: int, stop: int) -> Any:
        """Samples from start to stop."""
        ...

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        ...


class Updater:
    """Applies steps to a task.

    Args:
        fabric: device and precision.
        wrapped: the task as Fabric set it up.
        optimizer: likewise.
        recipe: its schedules and clipping.
        batch_size: samples of a step over all processes; learning rates scale with it.
        accumulate: parts that each process's batch is worked on in, one after another; their
            gradients are averaged. That is the whole batch's loss where it is a mean over samples.
            Terms that compare samples (Sinkhorn targets, contrastive negatives, batch statistics)
            see one part at a time, and means over what is counted in a batch, such as points that
            are visible in both views, are means of the parts' means.
    """

    def __init__(
        self,
        fabric: Fabric,
        wrapped: Any,
        optimizer: Optimizer,
        recipe: OptimizerConfig,
        *,
        batch_size: int,
        accumulate: int = 1,
    ) -> None:
        self.fabric, self.wrapped, self.optimizer, self.recipe = fabric, wrapped, optimizer, recipe
        self.batch_size, self.accumulate = batch_size, accumulate
        self._is_checked = False

    def schedule(self, info: StepInfo) -> dict[str, float]:
        """Set this step's rates; returns them."""
        return self.recipe.apply(self.optimizer, info.step, info.total_steps, self.batch_size)

    def backward(self, batch: Any, info: StepInfo) -> StepResult:
        """Gradients of a batch, ready to be clipped, and its mean losses.

        Raises: ValueError for a batch that does not divide into the parts, and, with several
            processes, for trainable parameters that take no part in the loss.
        """
        if self.accumulate == 1:
            result: StepResult = self.wrapped(batch, info)
            self.fabric.backward(result.loss)
        else:
            result = self._in_parts(batch, info)
        if not self._is_checked:
            self._check_gradients()
            self._is_checked = True
        self.wrapped.module.before_update(info)
        return result

    def _check_gradients(self) -> None:
        """Name trainable parameters without a gradient, for which several processes would wait."""
        idle = [
            name
            for name, param in self.wrapped.module.named_parameters()
            if param.requires_grad and param.grad is None
        ]
        if not idle:
            return
        names = f"{len(idle)} trainable parameters take no part in the loss: {', '.join(idle[:5])}"
        if len(idle) > 5:
            names += ", ..."
        if self.fabric.world_size > 1:
            raise ValueError(
                f"{names}; several processes require a gradient of each: leave out the part they "
                "belong to, or train in one process (task, loss; machine.devices=1)"
            )
        log.warning("%s; they keep their initial values", names)

    def _in_parts(self, batch: Batch, info: StepInfo) -> StepResult:
        size, rest = divmod(batch.num_samples, self.accumulate)
        if rest or not size:
            raise ValueError(
                f"{batch.num_samples} samples of a process do not divide into {self.accumulate} "
                "parts (trainer.accumulate, trainer.batch_size)"
            )
        results: list[StepResult] = []
        for number in range(self.accumulate):
            is_last = number == self.accumulate - 1
            with self.fabric.no_backward_sync(self.wrapped, enabled=not is_last):
                found = self.wrapped(batch.part(number * size, (number + 1) * size), info)
                self.fabric.backward(found.loss / self.accumulate)
            results.append(StepResult(found.loss.detach(), found.scalars))
        names = dict.fromkeys(name for r in results for name in r.scalars)
        scalars = {k: _mean([r.scalars[k] for r in results if k in r.scalars]) for k in names}
        return StepResult(_mean([r.loss for r in results]), scalars)

    def clip(self) -> Tensor | None:
        """Clip the gradients; returns their norm before, None where they are left alone."""
        return self.recipe.clip(self.fabric, self.wrapped, self.optimizer)

    def update(self) -> None:
        """Move the parameters and forget the gradients."""
        self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack([torch.as_tensor(v) for v in values]).mean(dim=0)
