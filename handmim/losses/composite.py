"""Supervised losses with weights, and their sum."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from handmim.engine.optim import Schedule, as_schedule
from handmim.losses.reduction import StepWeights, check_step_weights, over_steps
from handmim.types import StepInfo


class LossTerm(nn.Module):
    """One supervised loss; `forward(out, batch)` gives a scalar, or one number per refinement step,
    [T], without the weight.

    Args:
        weight: constant, or a schedule of the step.
    """

    needs: tuple[str, ...] = ()  # maps of the head's outputs that the loss reads

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        self.weight = as_schedule(weight)


class CompositeLoss(nn.Module):
    """Weighted sum of losses, each also reported by name.

    Args:
        terms: by name, in the order in which they are summed and logged.
        step_weights: how losses of every refinement step are averaged over steps, see
            `losses.reduction.over_steps`.
    """

    def __init__(self, terms: Mapping[str, LossTerm], step_weights: StepWeights = None) -> None:
        super().__init__()
        check_step_weights(step_weights)
        self.step_weights = step_weights
        if not terms:
            raise ValueError("no loss term is configured (loss=[...])")
        self.terms = nn.ModuleDict(dict(terms))
        self.weights = {name: term.weight for name, term in terms.items()}
        self.needs = frozenset(field for term in terms.values() for field in term.needs)

    def forward(self, out: Any, batch: Any, info: StepInfo) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and the unweighted losses `loss/<name>`; one of weight 0 counts 0 times, so that
        its parameters stay in the graph of distributed training."""
        weighted: list[Tensor] = []
        scalars: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            value = term(out, batch)
            if value.ndim == 1:
                value = over_steps(value, self.step_weights)
            scalars[f"loss/{name}"] = value.detach()
            weighted.append(self.weights[name](*info) * value)
        return sum(weighted[1:], start=torch.as_tensor(weighted[0])), scalars
