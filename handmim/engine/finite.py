"""Watching for losses, gradients and weights that are not finite, without waiting for the device
where that would cost."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from handmim.engine.checkpoint import save_checkpoint
from handmim.types import StepInfo, StepResult
from handmim.utils.processes import GOES_ON
from handmim.utils.run import Run

MOST_KEPT = 3  # batches of refused steps that stay on disk


class FiniteWatch:
    """Remembers on the device which step went wrong first.

    Args:
        device: where losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), torch.inf, device=device)

    def see(self, step: int, *values: Tensor | None) -> None:
        """Values [] of a step."""
        known = [v.detach().float() for v in values if v is not None]
        if known:
            is_bad = ~torch.stack(known).isfinite().all()
            self._first = torch.where(is_bad, self._first.clamp(max=step), self._first)

    @property
    def first_bad(self) -> int | None:
        """The first step with a value that is not finite; None where there is none. Waits."""
        first = float(self._first)
        return None if first == float("inf") else int(first)

    def first_bad_of_all(self, run: Run) -> int:
        """The first such step of all processes, one of which has one."""
        first = run.fabric.all_reduce(self._first, reduce_op="min")
        assert isinstance(first, Tensor)
        return int(first)


class NotFiniteError(FloatingPointError):
    """A loss or gradient is not finite.

    Args:
        step: the first such step.
        words: what happened and what to do.
        was_updated: whether the weights were updated since, and are lost.
    """

    def __init__(self, step: int, words: str, *, was_updated: bool) -> None:
        super().__init__(words)
        self.step, self.was_updated = step, was_updated


class FiniteGuard:
    """Finds losses and gradients that are not finite: before the update at steps that are checked,
    else before anything of them is logged or saved; and weights that are not, before they are.

    Args:
        run: devices and folder.
        task: whose weights they are.
        every: steps between checks, which wait for the device; None checks every step on a CPU and
            none elsewhere.
    """

    def __init__(self, run: Run, task: nn.Module, every: int | None) -> None:
        self.run, self.task, self._watch = run, task, FiniteWatch(run.device)
        self.every = every or (1 if run.device.type == "cpu" else None)

    def checks(self, step: int) -> bool:
        """Whether a step is looked at before its update."""
        return bool(self.every) and step % self.every == 0  # type: ignore[operator]

    def before_update(
        self, info: StepInfo, batch: Any, result: StepResult, norm: Tensor | None
    ) -> None:
        """Look at a step, or take note of it.

        Args:
            info: which step.
            batch: that it worked on; it is kept on disk where the step is refused.
            result: its losses.
            norm: of its gradients; None where it is not known.
        Raises: NotFiniteError, no update was made, or that the weights are lost since an earlier
            one.
        """
        # fp16's scaler skips steps with such gradients itself; anywhere else one would poison every
        # weight.
        norm = None if self.run.precision == "16-mixed" else norm
        if not self.checks(info.step):
            self._watch.see(info.step, result.loss, norm)
            return
        if self.run.any_rank(not bool(result.loss.isfinite())):
            self._refuse(info, batch, result, "loss")
        if norm is not None and not bool(norm.isfinite()):
            self._refuse(info, batch, result, "gradient norm")

    def check(self, last: int) -> None:
        """Ask for what was noted, and look at the weights; all processes have to.

        Args:
            last: step of the last update.
        Raises: NotFiniteError, the weights are lost.
        """
        weights = [param for param in self.task.parameters() if param.numel()]
        self._watch.see(max(0, last), get_total_norm(weights, norm_type=torch.inf))
        step = self._watch.first_bad
        if not self.run.any_rank(step is not None):
            return
        where = "on another process" if step is None else f"at step {step}"
        raise NotFiniteError(
            self._watch.first_bad_of_all(self.run),
            f"the loss, its gradient or the weights were not finite {where}, and the weights are "
            f"lost since: {GOES_ON} (in {self.run.dir}); take a lower optim.lr.start or precision "
            "32-true, or go past the step with trainer.nonfinite=rewind; "
            "trainer.check_finite_every=1 finds such losses before the update and keeps the batch",
            was_updated=True,
        )

    def forget(self) -> None:
        """Begin anew: the weights were put back to before what was noted."""
        self._watch = FiniteWatch(self.run.device)

    def _refuse(self, info: StepInfo, batch: Any, result: StepResult, what: str) -> None:
        self.check(info.step - 1)  # weights that are lost give no finite loss
        path = self.run.dir / f"nonfinite_step_{info.step:07d}_rank{self.run.rank}.pt"
        kept = set(self.run.dir.glob(f"nonfinite_step_*_rank{self.run.rank}.pt")) - {path}
        if is_kept := len(kept) < MOST_KEPT:
            fields = batch._asdict() if hasattr(batch, "_asdict") else {"batch": batch}
            save_checkpoint(path, {"step": info.step, "batch": fields})
        bad = sorted(name for name, value in result.scalars.items() if not bool(value.isfinite()))
        raise NotFiniteError(
            info.step,
            f"the {what} is not finite at step {info.step} (bad: {', '.join(bad) or 'no scalar'}); "
            f"no update was made{f', the batch is in {path}' if is_kept else ''}",
            was_updated=False,
        )
