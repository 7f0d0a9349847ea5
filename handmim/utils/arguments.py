"""Checks of arguments, each with one sentence that names the argument and what came."""

import math
from collections.abc import Collection, Sequence
from typing import Any


def one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises: ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")


def at_least(low: float, **values: float) -> None:
    """Raises: ValueError for a value below `low`, or NaN."""
    for name, value in values.items():
        if not value >= low:
            raise ValueError(f"{name} must be >= {low:g}, got {value}")


def above(low: float, **values: float) -> None:
    """Raises: ValueError for a value that is not above `low`."""
    for name, value in values.items():
        if not value > low:
            raise ValueError(f"{name} must be > {low:g}, got {value}")


def shares(**values: float) -> None:
    """Raises: ValueError for a value outside [0, 1]."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def below_one(**values: float) -> None:
    """Raises: ValueError for a value outside [0, 1)."""
    for name, value in values.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be in [0, 1), got {value}")


def interval(name: str, bounds: Sequence[float], high: float = math.inf) -> tuple[float, float]:
    """Bounds as a pair.

    Raises: ValueError unless 0 < low <= high.
    """
    if len(bounds) != 2 or not 0.0 < bounds[0] <= bounds[1] <= high:
        limit = "" if math.isinf(high) else f" <= {high:g}"
        raise ValueError(f"{name} must be [low, high] with 0 < low <= high{limit}, got {bounds}")
    return bounds[0], bounds[1]
