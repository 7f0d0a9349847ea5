"""Starting cells: through Hydra's multirun, or several local processes; and ending them cleanly."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from handmim.ablation.plan import CELL, ERROR, Cell
from handmim.utils.files import write_atomic
from handmim.utils.processes import start_child

log = logging.getLogger(__name__)

LOG = "log.txt"
POLL_S = 0.5
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def multirun(
    script: Sequence[str],
    words: Sequence[str],
    cells: Sequence[Cell],
    finished: Callable[[Cell], None],
) -> None:
    """All cells as one Hydra multirun, so that `hydra/launcher=...` decides where they run.

    Args:
        script: the entry point of one cell, and its options.
        words: the user's own overrides, launcher included.
        cells: to be run.
        finished: told of every cell that ended, soon after.
    """
    names = ",".join(cell.name for cell in cells)
    process = _start([*_command(script), "--multirun", f"cell={names}", *words], None)
    left, before = list(cells), {cell.name: _written(cell) for cell in cells}
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            for cell in [c for c in left if _written(c) not in (None, before[c.name])]:
                left.remove(cell)
                finished(cell)
    finally:
        _end([process])


def local_pool(
    script: Sequence[str],
    words: Sequence[str],
    cells: Sequence[Cell],
    finished: Callable[[Cell], None],
    *,
    jobs: int,
) -> None:
    """One process per cell, `jobs` at a time, with one torch thread each; output goes to log.txt.

    Args:
        script: the entry point of one cell, and its options.
        words: the user's own overrides.
        cells: to be run, in this order.
        finished: told of every cell that ended.
        jobs: processes at a time.
    """
    waiting = list(cells)
    running: dict[subprocess.Popen[bytes], Cell] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                command = [*_command(script), *words, f"cell={cell.name}", "machine.num_threads=1"]
                running[_start(command, cell.folder / LOG)] = cell
                log.info("%s: started, log in %s", cell.name, cell.folder / LOG)
            time.sleep(POLL_S)
            for process in [p for p in running if p.poll() is not None]:
                cell = running.pop(process)
                process.communicate()
                _note_crash(cell, process.returncode)
                finished(cell)
    finally:
        _end(list(running))


def _written(cell: Cell) -> int | None:
    """When cell.json was written, in nanoseconds; None while there is none."""
    path = cell.folder / CELL
    return path.stat().st_mtime_ns if path.is_file() else None


def _command(script: Sequence[str]) -> list[str]:
    return [sys.executable, *script]


def _note_crash(cell: Cell, code: int) -> None:
    """A process that was killed could not say so itself."""
    if code != 0 and not (cell.folder / CELL).is_file() and not (cell.folder / ERROR).is_file():
        write_atomic(cell.folder / ERROR, f"ended with exit code {code}, see {LOG}\n")


def _start(command: list[str], output: Path | None) -> "subprocess.Popen[bytes]":
    env = {**os.environ, **(ONE_THREAD if output is not None else {})}
    if output is None:
        return start_child(command, env=env)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        return start_child(command, env=env, stdout=file, stderr=subprocess.STDOUT)


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask what still runs to stop after its current step, and wait: it writes a checkpoint."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        with process:  # closes its stdin and waits
            pass
