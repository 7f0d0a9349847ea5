"""One training step, and its check for losses, gradients and weights that are not finite.

A step does not wait for the device: losses and norms stay there until somebody reads them.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import get_total_norm

from handmim.engine.checkpoint import save_checkpoint
from handmim.engine.optim import OptimizerConfig
from handmim.types import Prepare, StepInfo, StepResult, Task
from handmim.utils.findings import shown
from handmim.utils.processes import GOES_ON
from handmim.utils.ranks import objects_of_ranks
from handmim.utils.run import Run, precision_in_force
from handmim.utils.seed import step_generator, step_seed

log = logging.getLogger(__name__)

MOST_KEPT = 3  # batches of refused steps that stay on disk
Check = Callable[[StepInfo, Any, StepResult, Tensor | None], None]


def falls_on(step: int, every: int | None) -> bool:
    """Whether something that is done every so many steps is done now; None is never."""
    return every is not None and every != 0 and step % every == 0


class RunningMeans:
    """Means of scalars over all processes and steps; adding does not wait for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, int]] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Scalars [] of one step."""
        for name, value in scalars.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value.detach(), count + 1

    def take(self) -> dict[str, float]:
        """The means, which begin anew; called by every process. Names may differ between them."""
        every = objects_of_ranks({name: (float(t), n) for name, (t, n) in self._sums.items()})
        self._sums = {}
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for sums in every for name in sums):
            totals, counts = zip(*(sums[name] for sums in every if name in sums), strict=True)
            means[name] = sum(totals) / sum(counts)
        return means


class StepOutput(NamedTuple):
    """A step that was made."""

    batch: Any  # after `prepare`
    result: StepResult
    scalars: dict[str, Any]  # rates, gradient norm, what the task's `after_step` gives


@dataclass
class Ledger:
    """What a run left out. Kept in every checkpoint: a resumed run leaves out the same."""

    skipped: list[int] = field(default_factory=list)  # steps without an update
    replaced: int = 0  # draws of samples that could not be read
    unreadable: dict[str, str] = field(default_factory=dict)  # reason by name of the sample

    def scalars(self) -> dict[str, float]:
        """Counts worth logging: those that are not 0."""
        counts = {"data/replaced": self.replaced, "data/skipped_steps": len(self.skipped)}
        return {name: float(count) for name, count in counts.items() if count}


class TrainStep:
    """Augmentation, losses, backward pass, clipping, optimizer and averages of one step. Terms that
    compare samples or count over a batch see one of `accumulate` parts at a time."""

    def __init__(
        self,
        fabric: Fabric,
        task: Task,  # moved to the device
        config: OptimizerConfig,
        *,
        batch_size: int,  # samples of a step over all processes; learning rates scale with it
        accumulate: int = 1,  # parts of each process's batch, whose gradients are averaged
        seed: int = 0,
        prepare: Prepare | None = None,  # None takes batches as they come
    ) -> None:
        self.fabric, self.task, self.config, self.prepare = fabric, task, config, prepare
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        task.to(fabric.device)
        optimizer = config.build(task, task.lr_scales(), precision_in_force(fabric))
        self.wrapped, self.optimizer = fabric.setup(task, optimizer)
        self._is_checked = False

    def __call__(self, batch: Any, info: StepInfo, check: Check | None = None) -> StepOutput:
        """Make a step with a batch of this process, a tuple on the device with `part(start, stop)`
        of its samples. `check` is called with (info, batch, losses, gradient norm) before the
        update; what it raises leaves the parameters as they were. Raises: as `backward`."""
        scalars: dict[str, Any] = {**self.config.apply(self.optimizer, *info, self.batch_size)}
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
        self.optimizer.zero_grad()
        scalars |= self.task.after_step(info)
        return StepOutput(batch, result, scalars)

    def backward(self, batch: Any, info: StepInfo) -> StepResult:
        """Gradients of a prepared batch, ready to be clipped, and its mean losses. Raises:
        ValueError for a batch that does not divide, and for parameters that several processes wait
        for."""
        if self.accumulate == 1:
            result: StepResult = self.wrapped(batch, info)
            self.fabric.backward(result.loss)
        else:
            result = self._in_parts(batch, info)
        if not self._is_checked:
            self._is_checked = True
            named = self.task.named_parameters()
            idle = [name for name, param in named if param.requires_grad and param.grad is None]
            names = f"{len(idle)} trainable parameters take no part in the loss: {shown(idle, 5)}"
            if idle and self.fabric.world_size > 1:
                ways = "leave them out (task, loss), or train in one process (machine.devices=1)"
                raise ValueError(f"{names}; several processes require a gradient of each: {ways}")
            if idle:
                log.warning("%s; they keep their initial values", names)
        self.task.before_update(info)
        return result

    def _in_parts(self, batch: Any, info: StepInfo) -> StepResult:
        size, rest = divmod(len(batch[0]), self.accumulate)
        if rest or not size:
            num = f"{len(batch[0])} samples of a process"
            raise ValueError(f"{num} do not divide into {self.accumulate} parts (accumulate)")
        results = []
        for number in range(self.accumulate):
            is_last = number == self.accumulate - 1
            with self.fabric.no_backward_sync(self.wrapped, enabled=not is_last):
                result = self.wrapped(batch.part(number * size, (number + 1) * size), info)
                self.fabric.backward(result.loss / self.accumulate)
            results.append(StepResult(result.loss.detach(), result.scalars))
        values: dict[str, list[Tensor]] = {"": [result.loss for result in results]}
        for result in results:
            for name, value in result.scalars.items():
                values.setdefault(name, []).append(torch.as_tensor(value))
        means = {name: torch.stack(found).mean(dim=0) for name, found in values.items()}
        return StepResult(means.pop(""), means)


def _plain(value: Any) -> Any:
    """A batch, and batches within it, as dicts: files hold no classes of ours."""
    value = value._asdict() if hasattr(value, "_asdict") else value
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


class NotFiniteError(FloatingPointError):
    """The first loss, gradient or weight that is not finite; weights that were updated are lost."""

    def __init__(self, step: int, text: str, *, was_updated: bool) -> None:
        super().__init__(text)
        self.step, self.was_updated = step, was_updated


class FiniteGuard:
    """Finds losses and gradients that are not finite: before the update `every` few steps (None:
    all on a CPU, none elsewhere), else before they are logged or saved; and such weights."""

    def __init__(self, run: Run, task: Task, every: int | None = None) -> None:
        self.run, self.task = run, task
        self.every = every or (1 if run.device.type == "cpu" else None)
        self.forget()

    def forget(self) -> None:
        """Begin anew: the weights were put back to before what was noted."""
        self._first = torch.tensor(torch.inf)

    def note(self, step: int, *values: Tensor | None) -> None:
        """Remember on the device the first step with a value [] that is not finite."""
        known = [v.detach().float() for v in values if v is not None]
        if known:
            is_bad = ~torch.stack(known).isfinite().all()
            first = self._first.to(is_bad.device)
            self._first = torch.where(is_bad, first.clamp(max=step), first)

    def before_update(
        self, info: StepInfo, batch: Any, result: StepResult, norm: Tensor | None
    ) -> None:
        """Check a step, or note it. Raises: NotFiniteError: no update was made; or as `check`."""
        # fp16's scaler skips steps with such gradients itself.
        norm = None if self.run.precision == "16-mixed" else norm
        if not falls_on(info.step, self.every):
            self.note(info.step, result.loss, norm)
            return
        if self.run.any_rank(not bool(result.loss.isfinite())):
            name = "loss"
        elif norm is not None and not bool(norm.isfinite()):
            name = "gradient norm"
        else:
            return
        self.check(info.step - 1)  # weights that are lost give no finite loss
        path = self.run.dir / f"nonfinite_step_{info.step:07d}_rank{self.run.rank}.pt"
        others = set(self.run.dir.glob(f"nonfinite_step_*_rank{self.run.rank}.pt")) - {path}
        if is_kept := len(others) < MOST_KEPT:
            fields = _plain(batch) if hasattr(batch, "_asdict") else {"batch": batch}
            save_checkpoint(path, {"step": info.step, "batch": fields})
        bad = sorted(key for key, value in result.scalars.items() if not bool(value.isfinite()))
        text = f"the {name} is not finite at step {info.step} (bad: {', '.join(bad) or 'none'}); "
        text += f"no update was made{f', the batch is in {path}' if is_kept else ''}"
        raise NotFiniteError(info.step, text, was_updated=False)

    def check(self, last: int) -> None:
        """Read what was noted, and weights, after step `last`. Raises: NotFiniteError: they are
        lost."""
        weights = [param for param in self.task.parameters() if param.numel()]
        self.note(max(0, last), get_total_norm(weights, norm_type=torch.inf))
        own = float(self._first)
        if not self.run.any_rank(own < torch.inf):
            return
        where = f"at step {own:.0f}" if own < torch.inf else "on another process"
        first = self.run.fabric.all_reduce(self._first, reduce_op="min")
        text = f"the loss, its gradient or the weights were not finite {where}, and the weights are"
        text += f" lost since: {GOES_ON} (in {self.run.dir}); lower optim.lr.start, take precision"
        text += " 32-true or trainer.nonfinite=rewind (trainer.check_finite_every=1 keeps a batch)"
        raise NotFiniteError(int(torch.as_tensor(first)), text, was_updated=True)
