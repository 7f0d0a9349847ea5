"""Supervised losses with weights, how each is averaged, and their sum.

First over the labels of a sample, then over all samples of the batch, where unlabelled ones count
0: the gradient of a sample does not depend on its neighbours. Losses return one number per
refinement step, [T]. Unlabelled values have no effect, be it NaN: labels are zeroed before they
meet an estimate, errors after. docs/losses.md lists all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar, dataclass_transform

import torch
from torch import Tensor, nn

from handmim.engine.optim import Schedule, as_schedule
from handmim.types import StepInfo
from handmim.utils.arguments import above, at_least, one_of

T = TypeVar("T")
StepWeights = Sequence[float] | str | None


def positive(default: float, *, or_zero: bool = False) -> Any:
    """A field of a `loss_dataclass` that has to be above 0, or at least 0."""
    return field(default=default, metadata={"low": at_least if or_zero else above})


def choice(*choices: str) -> Any:
    """A field of a `loss_dataclass` that has to be one of the choices; the first is its default."""
    return field(default=choices[0], metadata={"choices": choices})


@dataclass_transform(kw_only_default=True, field_specifiers=(field,))
def loss_dataclass(cls: type[T]) -> type[T]:
    """A `WeightedLoss` whose annotated fields are its arguments, by keyword alone."""
    return dataclass(eq=False, repr=False, kw_only=True)(cls)


@dataclass(eq=False, repr=False)
class WeightedLoss(nn.Module):
    """A loss with a weight, which is constant or a schedule of the step; its fields are checked."""

    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        super().__init__()  # keeps the fields
        for each in fields(self):
            if "low" in each.metadata:
                each.metadata["low"](0.0, **{each.name: getattr(self, each.name)})
            if "choices" in each.metadata:
                one_of(each.name, getattr(self, each.name), each.metadata["choices"])


def zero_invalid(labels: Tensor, valid: Tensor) -> Tensor:
    """Labels [B, ...] with zeros wherever they are not valid; bool of their leading dimensions."""
    spread = valid.reshape(*valid.shape, *[1] * (labels.ndim - valid.ndim))
    return torch.where(spread, labels.float(), 0.0)


def over_points(error: Tensor, valid: Tensor, conf: Tensor | None = None) -> Tensor:
    """Mean over the labelled points of a sample, then over the batch: scalar.

    A confidence scales the error of its point and leaves the divisor, the number of labelled
    points, as it is: a sample of less confidence counts less.

    Args:
        error: [B, P], finite.
        valid: [B, P] bool.
        conf: [B, P] in [0, 1]; None counts 1.
    """
    weight = valid.float() if conf is None else zero_invalid(conf, valid)
    total = (torch.where(valid, error, 0.0) * weight).sum(dim=1)
    return (total / valid.sum(dim=1).clamp(min=1)).mean()


def over_samples(error: Tensor, has_label: Tensor) -> Tensor:
    """Mean over the batch of one error per sample, [B] finite with flags [B] bool: scalar."""
    return torch.where(has_label, error, 0.0).mean()


def over_steps(values: Tensor, weights: StepWeights = None) -> Tensor:
    """Weighted mean over refinement steps [T]: scalar; weights are scaled to a mean of 1.

    None counts all steps alike, "last" the last alone.

    Raises: ValueError when there are not T weights.
    """
    if weights is None:
        return values.mean()
    if isinstance(weights, str):  # products with 0 keep all steps in distributed training's graph
        weights = [0.0] * (len(values) - 1) + [1.0]
    if len(weights) != len(values):
        raise ValueError(
            f"got {len(weights)} weights {list(weights)} for {len(values)} refinement steps "
            "(step_weights, num_steps)"
        )
    return (values * values.new_tensor(weights)).sum() / sum(weights)


class LossTerm(WeightedLoss):
    """One supervised loss; `forward(out, batch)` gives a scalar, or one number per refinement step,
    [T], without the weight."""

    needs: ClassVar[tuple[str, ...]] = ()  # maps of the head's outputs that the loss reads


class CompositeLoss(nn.Module):
    """Weighted sum of losses by name, in their order; each is also reported. `step_weights`: see
    `over_steps`."""

    def __init__(self, terms: Mapping[str, LossTerm], step_weights: StepWeights = None) -> None:
        super().__init__()
        if step_weights is not None and step_weights != "last":
            numbers = [] if isinstance(step_weights, str) else list(step_weights)
            if not (all(math.isfinite(w) and w >= 0 for w in numbers) and sum(numbers) > 0):
                raise ValueError(
                    "step_weights must be null (equal), last, or one weight >= 0 per refinement "
                    f"step such as [0.5,0.75,1.0], got {step_weights}"
                )
        self.step_weights = step_weights
        if not terms:
            raise ValueError("no loss term is configured (loss=[...])")
        self.terms = nn.ModuleDict(dict(terms))
        self.weights = {name: as_schedule(term.weight) for name, term in terms.items()}
        self.needs = frozenset(name for term in terms.values() for name in term.needs)

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
