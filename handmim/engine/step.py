"""One training step, the same one for training, dry runs, benchmarks and tests.

Nothing here waits for the device: losses and norms stay there until somebody reads them.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from handmim.engine.optim import OptimizerConfig
from handmim.types import StepInfo, StepResult
from handmim.utils.run import precision_in_force
from handmim.utils.seed import step_generator, step_seed

log = logging.getLogger(__name__)

Prepare = Callable[[Any, torch.Generator, StepInfo], Any]
Check = Callable[[StepInfo, Any, StepResult, Tensor | None], None]


class Batch(Protocol):
    """What can be divided: `types.PretrainBatch`, `types.HandBatch`."""

    def part(self, start: int, stop: int) -> Any:
        """Samples from start to stop."""
        ...

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        ...


class StepOutput(NamedTuple):
    """A step that was made."""

    batch: Any  # after `prepare`
    result: StepResult
    scalars: dict[str, Any]  # rates, gradient norm, what the task's `after_step` gives


class TrainStep:
    """Augmentation, losses, backward pass, clipping, optimizer and averages of one step.

    Args:
        fabric: device, precision and rank.
        task: module whose forward is a step's loss (types.Task); moved to the device.
        config: of the optimizer.
        batch_size: samples of a step over all processes; learning rates scale with it.
        accumulate: parts that each process's batch is divided into; their gradients are averaged.
            Terms that compare samples or count over a batch see one part at a time.
        seed: of everything that a step draws.
        prepare: batch on the device -> augmented batch; None takes batches as they come.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: nn.Module,
        config: OptimizerConfig,
        *,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        prepare: Prepare | None = None,
    ) -> None:
        self.fabric, self.task, self.config, self.prepare = fabric, task, config, prepare
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        scales = task.lr_scales()  # type: ignore[operator]
        optimizer = config.build(task.to(fabric.device), scales, precision_in_force(fabric))
        self.wrapped, self.optimizer = fabric.setup(task, optimizer)
        self._is_checked = False

    def __call__(self, batch: Any, info: StepInfo, check: Check | None = None) -> StepOutput:
        """Make a step.

        Args:
            batch: of this process, on the device.
            info: which step.
            check: called with (info, batch, losses, gradient norm) before the update; what it
                raises leaves the parameters as they were.
        Raises: ValueError for a batch that does not divide into the parts, and, with several
            processes, for trainable parameters that take no part in the loss.
        """
        scalars: dict[str, Any] = dict(
            self.config.apply(self.optimizer, info.step, info.total_steps, self.batch_size)
        )
        # Dropout and stochastic depth have no generator argument: the global one is set by step.
        rank = self.fabric.global_rank
        torch.manual_seed(step_seed(self.seed, "step", info.step, rank))
        if self.prepare is not None:
            generator = step_generator(self.seed, "prepare", info.step, rank)
            batch = self.prepare(batch, generator, info)
        result = self.backward(batch, info)
        norm = self.config.clip(self.fabric, self.wrapped, self.optimizer)
        if norm is not None:
            scalars["gradient_norm"] = norm
        if check is not None:
            check(info, batch, result, norm)
        self.optimizer.step()
        self.zero_grad()
        scalars |= self.task.after_step(info)  # type: ignore[operator]
        return StepOutput(batch, result, scalars)

    def backward(self, batch: Any, info: StepInfo) -> StepResult:
        """Gradients of a prepared batch, ready to be clipped, and its mean losses; errors as
        `__call__`."""
        if self.accumulate == 1:
            result: StepResult = self.wrapped(batch, info)
            self.fabric.backward(result.loss)
        else:
            result = self._in_parts(batch, info)
        if not self._is_checked:
            self._check_gradients()
            self._is_checked = True
        self.task.before_update(info)  # type: ignore[operator]
        return result

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _check_gradients(self) -> None:
        """Name trainable parameters without a gradient, for which several processes would wait."""
        named = self.task.named_parameters()
        idle = [name for name, param in named if param.requires_grad and param.grad is None]
        if not idle:
            return
        names = f"{len(idle)} trainable parameters take no part in the loss: "
        names += ", ".join([*idle[:5], *["..."][: len(idle) > 5]])
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
                "parts (accumulate, batch_size)"
            )
        results: list[StepResult] = []
        for number in range(self.accumulate):
            is_last = number == self.accumulate - 1
            with self.fabric.no_backward_sync(self.wrapped, enabled=not is_last):
                result = self.wrapped(batch.part(number * size, (number + 1) * size), info)
                self.fabric.backward(result.loss / self.accumulate)
            results.append(StepResult(result.loss.detach(), result.scalars))
        names = dict.fromkeys(name for r in results for name in r.scalars)
        scalars = {k: _mean([r.scalars[k] for r in results if k in r.scalars]) for k in names}
        return StepResult(_mean([r.loss for r in results]), scalars)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack([torch.as_tensor(v) for v in values]).mean(dim=0)
