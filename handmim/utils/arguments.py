"""Checks of arguments, each with one sentence that names the argument and what came."""

import math
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Any


def one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises: ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")


def _each(values: dict[str, float], required: str, holds: Callable[[float], bool]) -> None:
    for name, value in values.items():
        if not holds(value):
            raise ValueError(f"{name} must be {required}, got {value}")


def at_least(low: float, **values: float) -> None:
    """Raises: ValueError for a value below `low`, or NaN."""
    _each(values, f">= {low:g}", lambda value: value >= low)


def above(low: float, **values: float) -> None:
    """Raises: ValueError for a value that is not above `low`."""
    _each(values, f"> {low:g}", lambda value: value > low)


def shares(**values: float) -> None:
    """Raises: ValueError for a value outside [0, 1]."""
    _each(values, "in [0, 1]", lambda value: 0.0 <= value <= 1.0)


def below_one(**values: float) -> None:
    """Raises: ValueError for a value outside [0, 1)."""
    _each(values, "in [0, 1)", lambda value: 0.0 <= value < 1.0)


def interval(name: str, bounds: Sequence[float], high: float = math.inf) -> tuple[float, float]:
    """Bounds as a pair. Raises: ValueError unless 0 < low <= high."""
    if len(bounds) != 2 or not 0.0 < bounds[0] <= bounds[1] <= high:
        limit = "" if math.isinf(high) else f" <= {high:g}"
        raise ValueError(f"{name} must be [low, high] with 0 < low <= high{limit}, got {bounds}")
    return bounds[0], bounds[1]


def meant(word: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """What a misspelt word was meant to be, as the end of a sentence; "" where nothing is close."""
    close = get_close_matches(word, known, n=1, cutoff=cutoff)
    return f", did you mean {close[0]}?" if close else ""
