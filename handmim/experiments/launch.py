"""Processes of runs: one per run, or one of Hydra's multirun for all; and ending them cleanly."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from handmim.experiments.plan import ERROR, Run
from handmim.utils.files import write_atomic
from handmim.utils.processes import start_child

log = logging.getLogger(__name__)

LOG = "log.txt"
POLL_S = 0.5
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


class Job(NamedTuple):
    """A process that makes runs."""

    command: list[str]
    runs: list[Run]
    log: Path | None = None  # for its output, with one thread; None: output of this process


def multirun(command: Sequence[str], overrides: Sequence[str], runs: Sequence[Run]) -> list[Job]:
    """All runs as one Hydra multirun, so that `hydra/launcher=...` decides where they run."""
    names = ",".join(run.name for run in runs)
    return [Job([*command, "--multirun", f"run={names}", *overrides], list(runs))]


def local_jobs(command: Sequence[str], overrides: Sequence[str], runs: Sequence[Run]) -> list[Job]:
    """A process per run with one torch thread; its output goes to log.txt."""
    return [
        Job(
            [*command, *overrides, f"run={run.name}", "machine.num_threads=1"],
            [run],
            run.folder / LOG,
        )
        for run in runs
    ]


def launch(jobs: Sequence[Job], finished: Callable[[Run], None], *, at_once: int = 1) -> None:
    """Start `at_once` jobs at a time; `finished` is called for every run soon after it ended.

    A run that fails does not stop the others.
    """
    waiting = list(jobs)
    before = {run.name: _time_of(run) for job in jobs for run in job.runs}
    running: dict[subprocess.Popen[bytes], Job] = {}

    def is_new(run: Run) -> bool:
        return _time_of(run) not in (None, before[run.name])

    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[_start(job)] = job
            time.sleep(POLL_S)
            for process, job in list(running.items()):
                code = process.poll()
                for run in [run for run in job.runs if is_new(run)]:
                    job.runs.remove(run)
                    finished(run)
                if code is not None:
                    del running[process]
                    process.communicate()
                    for run in job.runs:
                        _note_crash(run, job, code)
                        finished(run)
    finally:
        _end(list(running))


def _start(job: Job) -> "subprocess.Popen[bytes]":
    if job.log is None:
        return start_child(job.command)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s: started, log in %s", job.runs[0].name, job.log)
    with job.log.open("ab") as file:
        env = {**os.environ, **ONE_THREAD}
        return start_child(job.command, env=env, stdout=file, stderr=subprocess.STDOUT)


def _time_of(run: Run) -> int | None:
    """When the result was written, in nanoseconds; None while there is none."""
    path = run.result_file()
    return None if path is None else path.stat().st_mtime_ns


def _note_crash(run: Run, job: Job, code: int) -> None:
    """Write the error of a killed process, which could not write it itself."""
    if job.log is not None and code and not (run.folder / ERROR).is_file():
        write_atomic(run.folder / ERROR, f"ended with exit code {code}, see {LOG}\n")


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Stop what still runs after its current step, and wait: it writes a checkpoint."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        with process:  # closes its stdin and waits
            pass
