"""Exponential moving average of a model's weights: its decay at every step."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from handmim.utils.arguments import below_one


@dataclass(frozen=True)
class Averaging:
    """An exponential moving average of weights.

    Args:
        decay: share of the average that stays at every step.
        warmup: at step n = 0, 1, ... let at most (1 + n) / (10 + n) of it stay, so that a short run
            does not average the weights it began with.
    Raises: ValueError for a decay outside [0, 1).
    """

    decay: float = 0.9998
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    def __call__(self, step: int) -> float:
        """Share of the average that stays at step 0, 1, ..."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


def averaging_of(settings: Mapping[str, Any] | float | None) -> Averaging | None:
    """Settings as a config gives them, or the decay alone; None averages nothing.

    Raises: ValueError for a setting that does not exist, and as `Averaging`.
    """
    if settings is None:
        return None
    if isinstance(settings, (int, float)):
        below_one(average=settings)
        return Averaging(settings)
    known = {f.name for f in fields(Averaging)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"averages have no settings {unknown}, they have {sorted(known)}")
    return Averaging(**settings)
