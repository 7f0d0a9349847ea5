"""Several plain subprocesses at one job; they start without torch and inherit nothing."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from handmim.utils.processes import start_child

JOB = "job.json"
ROOM = 100_000  # bytes: a disk with less is full
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
POLL_S = 0.1


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_workers(
    module: str,
    job: Mapping[str, Any],
    folder: Path,
    num_workers: int,
    while_waiting: Callable[[], None],
) -> None:
    """Run `python -m MODULE FOLDER/job.json WORKER` for WORKER 0 .. num_workers - 1, until all are
    done or one has failed. None outlives the call, nor this process, however it ends.

    Args:
        module: importable here; calls `end_with_parent`, reads the job, does one worker's share.
        job: JSON-ready settings.
        folder: existing folder for the job.
        num_workers: processes, one thread each.
        while_waiting: called several times a second, for progress.
    Raises: RuntimeError with the message of a worker that failed; OSError for a full disk.
    """
    (folder / JOB).write_text(json.dumps(job))
    command = [sys.executable, "-m", module, str(folder / JOB)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    env = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": path}
    workers: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        # Not in the folder, whose disk may fill up.
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(num_workers)]
        stack.callback(_end, workers)
        for i in range(num_workers):
            workers.append(start_child([*command, str(i)], env=env, stderr=errors[i]))
        while any(worker.poll() is None for worker in workers):
            time.sleep(POLL_S)
            if any(worker.poll() for worker in workers):
                break  # one has failed: do not wait for the others
            while_waiting()
        for file, worker in zip(errors, workers, strict=True):
            if worker.poll():
                free = shutil.disk_usage(folder).free
                if free < ROOM:
                    text = f"{folder} cannot take the renders: {free} bytes are free on its disk"
                    raise OSError(errno.ENOSPC, text)
                file.seek(0)
                message = file.read().decode(errors="replace").strip()[-2000:]
                raise RuntimeError(f"a rendering process failed (exit {worker.poll()}): {message}")


def _end(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    for worker in workers:
        worker.kill()
        worker.wait()
        if worker.stdin is not None:
            worker.stdin.close()
