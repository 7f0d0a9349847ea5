"""Weighted sum of loss terms; weights may be schedules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from handmim.engine.schedule import Schedule, as_schedule
from handmim.losses.reduction import StepWeights, check_step_weights, over_steps
from handmim.types import StepInfo


@dataclass(frozen=True)
class Weighted:
    """A loss term and its weight over training.

    Args:
        term: module with `forward(out, batch) -> scalar`, or one number per refinement step, [T].
        weight: constant, or a schedule of the step.
    """

    term: nn.Module
    weight: float | Schedule = 1.0


class LossSum(nn.Module):
    """Sum of weighted terms, each also reported by name.

    Args:
        parts: terms by name, in the order in which they are logged.
        step_weights: how terms that score every refinement step are averaged over steps, see
            `losses.reduction.over_steps`.
    """

    def __init__(self, parts: Mapping[str, Weighted], step_weights: StepWeights = None) -> None:
        super().__init__()
        check_step_weights(step_weights)
        self.step_weights = step_weights
        if not parts:
            raise ValueError("no loss term is configured (loss=[...])")
        self.terms = nn.ModuleDict({name: part.term for name, part in parts.items()})
        self.weights = {name: as_schedule(part.weight) for name, part in parts.items()}
        # Fields of the outputs that some term looks at, where terms say so.
        needs = [getattr(term, "needs", ()) for term in self.terms.values()]
        self.needs = frozenset(field for fields in needs for field in fields)

    def forward(self, out: Any, batch: Any, info: StepInfo) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and the unweighted terms `loss/<name>`; a term of weight 0 counts 0 times, so that
        its parameters stay in the graph of distributed training."""
        total: Tensor | None = None
        scalars: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            weight = self.weights[name](info.step, info.total_steps)
            value = term(out, batch)
            if value.ndim == 1:
                value = over_steps(value, self.step_weights)
            scalars[f"loss/{name}"] = value.detach()
            total = weight * value if total is None else total + weight * value
        if not torch.is_tensor(total):
            raise TypeError(f"loss terms must return tensors, got {type(total)}")
        return total, scalars
