"""Schedules as pure functions of the step: nothing to save, nothing to restore."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SHAPES = ("cosine", "linear")


@dataclass(frozen=True)
class Schedule:
    """Warm up linearly from `warmup_start` to `start`, then go from `start` to `end`.

    Args:
        start: value after warm-up.
        end: value at the last step; None keeps `start`.
        shape: "cosine" (half a period) or "linear" way from start to end.
        warmup_fraction: share of all steps spent warming up.
        warmup_steps: or their number; exclusive with the share.
        warmup_start: value that warm-up leaves from.
    """

    start: float
    end: float | None = None
    shape: str = "cosine"
    warmup_fraction: float = 0.0
    warmup_steps: int | None = None
    warmup_start: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"schedule shape must be one of {SHAPES}, got {self.shape!r}")
        if not 0.0 <= self.warmup_fraction < 1.0:
            raise ValueError(f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}")
        if self.warmup_steps is not None and self.warmup_fraction:
            raise ValueError("give warmup_steps or warmup_fraction, not both")

    def __call__(self, step: int, total_steps: int) -> float:
        """Value at step 0 .. total_steps - 1; later steps keep the last value."""
        warmup = self.warmup_steps
        if warmup is None:
            warmup = round(self.warmup_fraction * total_steps)
        if step < warmup:
            return self.warmup_start + (self.start - self.warmup_start) * (step + 1) / warmup
        if self.end is None:
            return self.start
        t = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
        if self.shape == "cosine":
            t = 0.5 * (1.0 - math.cos(math.pi * t))
        return self.start + (self.end - self.start) * t


def as_schedule(value: "float | Schedule") -> Schedule:
    """A number as a constant schedule."""
    return value if isinstance(value, Schedule) else Schedule(start=float(value))


def changed_schedules(
    config: Any, step: int, before: int, after: int
) -> dict[str, tuple[float, float]]:
    """Values at a step of those schedules of a config that another number of steps changes.

    Args:
        config: resolved plain containers.
        step: the first that is made under the new length.
        before, after: numbers of steps.
    Returns: (before, after) by the config key.
    """
    values = {
        key: (schedule(step, before), schedule(step, after))
        for key, schedule in _schedules(config, "")
    }
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def _schedules(node: Any, key: str) -> Iterator[tuple[str, Schedule]]:
    if isinstance(node, dict) and node.get("_target_") == f"{__name__}.{Schedule.__name__}":
        yield key, Schedule(**{k: v for k, v in node.items() if not k.startswith("_")})
    elif isinstance(node, (dict, list)):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _schedules(value, f"{key}.{name}".lstrip("."))
