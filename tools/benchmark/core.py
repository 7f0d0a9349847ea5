"""What all suites share: variants timed in turns, rows of results, peak FLOP/s, peak memory."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from handmim.utils.arguments import at_least
from handmim.utils.timer import wait_for

Work = Callable[[], object]
Maker = Callable[..., Work]

MIB = 2**20
SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices whose products give the peak


def device_of(name: str) -> torch.device:
    """Raises: ValueError for a name that is no device, or none of this machine."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no GPU: device=cpu")
    return device


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
        at_least(1, rounds=self.rounds)

    def race(self, variants: Mapping[str, Work]) -> dict[str, list[float]]:
        """Seconds of every round by variant; odd rounds go backwards through them, so that what
        disturbs a machine disturbs all of them alike.

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


def work_clock(device: torch.device) -> Callable[[], float]:
    """A clock in seconds: process time on a CPU, which other processes do not lengthen, else wall
    time once the device is done."""
    if device.type == "cpu":
        return time.process_time

    def waited() -> float:
        wait_for(device)
        return time.perf_counter()

    return waited


@dataclass(frozen=True)
class Row:
    """Results of one variant; a case has one reference."""

    suite: str
    case: str
    variant: str
    ms: float | None = None  # median of a round
    speedup: float | None = None  # median of the reference / median of this
    low: float | None = None  # lowest and highest of the rounds' own ratios to the reference
    high: float | None = None
    promised: float | None = None  # speedup
    per_s: float | None = None  # items per second of the median round
    promised_per_s: float | None = None
    unit: str = ""  # of the items
    peak_mib: float | None = None  # memory above that before the first round
    memory_share: float | None = None  # of the reference's
    gflop: float | None = None  # operations of a round, a multiply-add counts two
    peak_share: float | None = None  # of the device's measured rate of matrix products
    error: float | None = None  # largest difference from the reference's result
    error_unit: str = ""
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """Fields that are known, for JSON."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def compared(
    suite: str,
    case: str,
    seconds: Mapping[str, Sequence[float]],
    reference: str,
    *,
    items: int = 1,
    unit: str = "",
    promised: Mapping[str, float] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """A row per variant of a race.

    Args:
        suite, case: of the rows.
        seconds: of the race.
        reference: variant that the others are compared with.
        items, unit: that each round works on.
        promised: speedups by variant.
        more: further fields of `Row` by variant.
    """
    base = seconds[reference]
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        fields: dict[str, Any] = {"ms": 1e3 * median, "per_s": items / median, "unit": unit}
        if name != reference:
            ratios = [a / b for a, b in zip(base, times, strict=True)]
            fields |= {"speedup": statistics.median(base) / median}
            fields |= {"low": min(ratios), "high": max(ratios)}
            fields |= {"promised": (promised or {}).get(name)}
        rows.append(Row(suite, case, name, **fields | dict((more or {}).get(name, {}))))
    return rows


def peak_flops_per_s(device: torch.device, dtype: torch.dtype, rounds: int = 9) -> float:
    """Operations per second of square matrix products, median of rounds."""
    side = SIDES.get(device.type, 4096)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    clock = work_clock(device)
    rates = []
    for _ in range(rounds + 2):
        began = clock()
        a @ b
        rates.append(2 * side**3 / max(clock() - began, 1e-9))
    return statistics.median(rates[2:])


def flops_of(work: Work) -> int:
    """Operations of matrix products, convolutions and attention in one call; compiled work runs
    uncompiled, for compiled kernels are not counted."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_mib(make: Maker, *args: Any, device: torch.device, times: int = 3) -> float:
    """Memory that a piece of work adds at its highest to what its preparation holds, in a process
    of its own.

    On a CPU the highest resident size less that before the first call, without libraries that
    were loaded meanwhile; on a GPU the caching allocator's. Memory that the preparation gave back
    masks as much of the work's: keep preparations lean.

    Args:
        make: importable function that prepares the work and returns it.
        args: of `make`; they are pickled.
        device: that the work runs on.
        times: calls; the first one fills caches and optimizer states.
    Raises: RuntimeError where the other process fails, whose error is on the terminal.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(there, make, args, str(device), times))
    child.start()
    there.close()
    try:
        peak = float(here.recv())
    except EOFError:
        child.join()
        name = getattr(make, "__name__", str(make))
        raise RuntimeError(
            f"{name} could not be measured: its process ended with {child.exitcode}"
        ) from None
    child.join()
    return peak


def _measure(pipe: Any, make: Maker, args: tuple[Any, ...], device: str, times: int) -> None:
    torch.set_num_threads(1)
    work = make(*args)
    is_cpu = torch.device(device).type == "cpu"
    if not is_cpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = _kib("VmRSS") - _kib("RssFile") if is_cpu else torch.cuda.memory_allocated() / 1024
    for _ in range(times):
        work()
    peak = _kib("VmHWM") - _kib("RssFile") if is_cpu else torch.cuda.max_memory_allocated() / 1024
    pipe.send((peak - before) / 1024)


def _kib(name: str) -> int:
    """A line of this process's status on Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])
