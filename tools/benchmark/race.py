"""Variants of the same work, timed in turns: what disturbs a machine disturbs all of them alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from handmim.utils.timer import work_clock

Work = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """Where and how long to measure.

    Args:
        device: to measure on.
        rounds: how often each variant is timed, after one round to warm up.
    """

    device: torch.device
    rounds: int = 7

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds} (rounds)")

    def race(self, variants: Mapping[str, Work]) -> dict[str, list[float]]:
        """Seconds of every round by variant; odd rounds go backwards through them.

        On a CPU they are the process's own CPU seconds, else wall time until the device is done.
        """
        clock = work_clock(self.device)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        names = list(variants)
        for number in range(self.rounds + 1):
            for name in names if number % 2 == 0 else reversed(names):
                began = clock()
                variants[name]()
                seconds[name].append(clock() - began)
        return {name: each[1:] for name, each in seconds.items()}


@dataclass(frozen=True)
class Row:
    """One variant's figures.

    Args:
        suite, case, variant: what was measured; a case has one reference.
        ms: median of a round, in milliseconds.
        speedup: median of the reference / median of this; None where it is the reference.
        low, high: lowest and highest of the rounds' own ratios to the reference.
        asked: speedup that is promised.
        per_s: items per second of the median round.
        asked_per_s: rate that is promised.
        unit: of the items.
        peak_mib: memory above what stood before the first round.
        memory_share: that, relative to the reference's.
        gflop: floating-point operations of a round, a multiply-add counts two.
        ceiling_share: their rate as a share of the device's measured rate of matrix products.
        error: largest difference from the reference's answer, in `error_unit`.
        note: what else is to be said.
    """

    suite: str
    case: str
    variant: str
    ms: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    asked: float | None = None
    per_s: float | None = None
    asked_per_s: float | None = None
    unit: str = ""
    peak_mib: float | None = None
    memory_share: float | None = None
    gflop: float | None = None
    ceiling_share: float | None = None
    error: float | None = None
    error_unit: str = ""
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """What is known, for JSON."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def compared(
    suite: str,
    case: str,
    seconds: Mapping[str, Sequence[float]],
    reference: str,
    *,
    items: int = 1,
    unit: str = "",
    asked: Mapping[str, float] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """A row per variant of a race.

    Args:
        suite, case: what was measured.
        seconds: of the race.
        reference: variant that the others are compared with.
        items, unit: that each round works on.
        asked: promised speedups by variant.
        more: further fields of `Row` by variant.
    """
    base = seconds[reference]
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        figures: dict[str, Any] = {"ms": 1e3 * median, "per_s": items / median, "unit": unit}
        if name != reference:
            ratios = [a / b for a, b in zip(base, times, strict=True)]
            figures |= {"speedup": statistics.median(base) / median}
            figures |= {"low": min(ratios), "high": max(ratios)}
            figures |= {"asked": (asked or {}).get(name)}
        rows.append(Row(suite, case, name, **figures | dict((more or {}).get(name, {}))))
    return rows
