"""Peak memory of a piece of work, in a process of its own where nothing else was ever allocated."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MIB = 2**20

Maker = Callable[..., Callable[[], object]]


def peak_mib(make: Maker, *args: Any, device: torch.device, times: int = 3) -> float:
    """Memory that a piece of work adds at its highest to what its preparation holds.

    On a CPU the highest resident size less that before the first call, without libraries that
    were loaded meanwhile; on a GPU the caching allocator's. Memory that the preparation took and
    gave back hides as much of the work's: keep preparations lean.

    Args:
        make: importable function that prepares the work and returns it.
        args: of `make`; they travel to the other process.
        device: that the work runs on.
        times: calls; the first one fills caches and optimizer states.
    Raises: RuntimeError where the other process fails, with its words on the terminal.
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
    if torch.device(device).type == "cpu":
        before = _kib("VmRSS") - _kib("RssFile")
        for _ in range(times):
            work()
        after = _kib("VmHWM") - _kib("RssFile")
        peak = (after - before) / 1024
    else:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(times):
            work()
        peak = (torch.cuda.max_memory_allocated() - before) / MIB
    pipe.send(peak)


def _kib(name: str) -> int:
    """A line of this process's status, as Linux tells it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])
