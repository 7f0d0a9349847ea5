"""How every regression loss is averaged.

First over the labels of a sample, then over all samples of the batch, where unlabelled ones count
0. So the gradient of a sample does not depend on its neighbours, and a mixed batch gives the mean
of its parts. Refinement steps stay separate until `losses.composite` sums: losses return one number
per step, [T], and never score the mean hand that the head starts from. docs/losses.md lists all.

Unlabelled values have no effect, be it NaN: labels are zeroed before they meet an estimate, so that
no error is infinite, and errors after.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

StepWeights = Sequence[float] | str | None


def zero_invalid(labels: Tensor, valid: Tensor) -> Tensor:
    """Labels with zeros wherever they are not valid.

    Args:
        labels: [B, ...].
        valid: bool, the leading dimensions of the labels.
    """
    spread = valid.reshape(*valid.shape, *[1] * (labels.ndim - valid.ndim))
    return torch.where(spread, labels.float(), 0.0)


def over_points(error: Tensor, valid: Tensor, conf: Tensor | None = None) -> Tensor:
    """Mean over the labelled points of a sample, then over the batch.

    A confidence scales the error of its point and leaves the divisor, the number of labelled
    points, as it is: a sample of less confidence counts less.

    Args:
        error: [B, P], finite.
        valid: [B, P] bool.
        conf: [B, P] in [0, 1]; None counts 1.
    Returns: scalar in the unit of the error.
    """
    weight = valid.float() if conf is None else zero_invalid(conf, valid)
    total = (torch.where(valid, error, 0.0) * weight).sum(dim=1)
    return (total / valid.sum(dim=1).clamp(min=1)).mean()


def over_samples(error: Tensor, has_label: Tensor) -> Tensor:
    """Mean over the batch of one error per sample, [B] finite with flags [B] bool: scalar."""
    return torch.where(has_label, error, 0.0).mean()


def check_step_weights(weights: StepWeights) -> None:
    """Refuse what `over_steps` could not use for any number of steps.

    Raises: ValueError.
    """
    if weights is None or weights == "last":
        return
    numbers = [] if isinstance(weights, str) else list(weights)
    if all(math.isfinite(w) and w >= 0 for w in numbers) and sum(numbers) > 0:
        return
    raise ValueError(
        "step_weights must be null (equal), last, or one weight >= 0 per refinement step such as "
        f"[0.5,0.75,1.0], got {weights}"
    )


def over_steps(values: Tensor, weights: StepWeights = None) -> Tensor:
    """Weighted mean over refinement steps; weights are scaled to a mean of 1.

    Args:
        values: [T], the first refinement first.
        weights: None counts all alike, "last" the last alone, else one weight per step.
    Returns: scalar in the unit of the values.
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
