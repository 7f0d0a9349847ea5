"""Loader processes: how they start, what they make, how they end.

They start without the threads of this process, survive the signals that stop a run until it is
saved, and end with it. A fork of a process that has threads can wait for ever: locks that were held
stay held. They are therefore forked from a server process that imports what they need and starts no
thread; where there is no such server, each starts anew.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from handmim.engine.step import Prepare
from handmim.types import StepInfo
from handmim.utils.files import UnreadableSample
from handmim.utils.processes import THREADS
from handmim.utils.ranks import portable
from handmim.utils.seed import step_generator, step_seed

METHODS = multiprocessing.get_all_start_methods()
METHOD = "forkserver" if "forkserver" in METHODS else "spawn"
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # stop a run
HINTS = {"SIGKILL": ": out of memory?", "SIGBUS": ": out of shared memory (/dev/shm)?"}
TRIES = 8  # samples in place of one that cannot be read

Collate = Callable[[list[Any]], Any]


def signal_numbers() -> set[int]:
    """Of the signals that stop a run, those that the platform has."""
    return {getattr(signal, name) for name in SIGNALS if hasattr(signal, name)}


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Processes started here are not reached by signals that stop a run; this process gets those
    that came meanwhile at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal_numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_server() -> None:
    """Start the process that workers are forked from, without waiting for it: its imports take
    seconds, beside which other work goes on."""
    if METHOD != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker

    data = sorted(name for name in sys.modules if name.startswith("handmim.data."))
    context = multiprocessing.get_context(METHOD)
    context.set_forkserver_preload(["cv2", "torch", "handmim.engine.loader", *data])
    with signals_held_back():
        resource_tracker.ensure_running()  # lets some signals through again
    before = {name: os.environ.pop(name) for name in THREADS if name in os.environ}
    # A thread that the server's libraries had started would be missing in its forks.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    with signals_held_back():
        forkserver.ensure_running()
    for name in THREADS:
        del os.environ[name]
    os.environ.update(before)


def begin_worker(worker_id: int) -> None:
    """First thing in a worker."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # a worker's system parent is the server, which lives as long as its workers
    os._exit(1)


def end_of(worker: BaseProcess) -> str:
    """How a worker ended, for an error."""
    code = worker.exitcode or 0
    if code == 1:
        return (
            f"loader worker {worker.pid} could not start or ended with exit code 1: a script of "
            'your own that starts workers needs `if __name__ == "__main__":` around what it does'
        )
    if code > 0:
        return f"loader worker {worker.pid} was ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"loader worker {worker.pid} was ended by {name}{HINTS.get(name, '')}"


class Loaded(NamedTuple):
    """A batch from a worker, or why there is none."""

    batch: Any
    replaced: Sequence[tuple[str, str]] = ()  # (name, reason) of samples left out or replaced
    error: Exception | None = None
    stack: str = ""  # of an error in another process


def attempt(make: Callable[[], Loaded]) -> Loaded:
    """The result of `make`, or its error: torch would raise a worker's again as lines of text."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001  `Loading` raises it
        if get_worker_info() is None:
            return Loaded(None, error=error)
        return Loaded(None, error=portable(error), stack=traceback.format_exc())


@dataclass
class StepBatches(Dataset[Loaded]):
    """Whole batches by (step, indices of their samples), made in the processes that load."""

    dataset: Dataset[Any]  # map-style samples
    collate: Collate
    on_host: Prepare | None  # further work on a batch
    seed: int  # of its generator, with the rank
    rank: int
    total_steps: int
    # Take another sample, chosen by (seed, step, rank, position), for an `UnreadableSample`.
    replaces: bool

    def __getitem__(self, request: tuple[int, list[int]]) -> Loaded:
        return attempt(lambda: self._make(*request))

    def _make(self, step: int, indices: list[int]) -> Loaded:
        replaced: list[tuple[str, str]] = []
        samples = []
        for position, index in enumerate(indices):
            try:
                samples.append(self.dataset[index])
            except UnreadableSample as error:
                if not self.replaces:
                    raise
                replaced.append((error.path, error.reason))
                samples.append(self._other(step, position, set(indices), replaced))
        batch = self.collate(samples)
        if self.on_host is not None:
            generator = step_generator(self.seed, "prepare", step, self.rank)
            batch = self.on_host(batch, generator, StepInfo(step, self.total_steps))
        return Loaded(batch, replaced)

    def _other(
        self, step: int, position: int, used: set[int], replaced: list[tuple[str, str]]
    ) -> Any:
        """A sample that is not in the batch, where there is one."""
        size = len(self.dataset)  # type: ignore[arg-type]
        rng = np.random.default_rng(step_seed(self.seed, "replace", step, self.rank, position))
        others = [index for index in rng.permutation(size).tolist() if index not in used]
        for index in (others or list(used))[:TRIES]:
            try:
                return self.dataset[index]
            except UnreadableSample as error:
                last = error
                replaced.append((error.path, error.reason))
        raise last
