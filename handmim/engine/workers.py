"""Loader workers: processes that start without the threads of this one, survive the signals that
stop a run until it is saved, and end with it.

A fork of a process that has threads can wait for ever: locks that were held stay held, and a pool's
threads are missing. Workers are forked from a server process that imports what they need and starts
no thread (`server_imports`); where there is no such server, each starts anew.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from handmim.utils.processes import StalledError
from handmim.utils.ranks import own_rank, portable

METHODS = multiprocessing.get_all_start_methods()
METHOD = "forkserver" if "forkserver" in METHODS else "spawn"
HELD_BACK = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
LEAVE_S, END_S = 1.0, 5.0
PARTS, TIMED_OUT = 20, "DataLoader timed out"  # time in which all is stopped counts as one part


class _Waiting:
    limit_s: float | None = None


def limit_waiting(seconds: float | None) -> None:
    """How long a `Loading` that begins from now on waits for an item; None is for ever."""
    _Waiting.limit_s = seconds


class WorkerDiedError(RuntimeError):
    """A loader worker ended by itself."""


class _StackError(Exception):
    """The cause of an error of another process: its stack, as text."""


class Loaded(NamedTuple):
    """What a worker sends: a batch, or why there is none."""

    batch: Any
    # (name, reason) of the samples that another one stands in for
    replaced: Sequence[tuple[str, str]] = ()
    error: Exception | None = None
    stack: str = ""  # of an error in another process

    def unwrapped(self) -> Any:
        """The batch.

        Raises: the error of whoever made it.
        """
        if self.error is None:
            return self.batch
        if self.stack:
            raise self.error from _StackError(f"\n{self.stack}")
        raise self.error


def attempt(make: Callable[[], Loaded]) -> Loaded:
    """What `make` gives, or its error: torch would raise a worker's again as many lines of text."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001  `Loaded.unwrapped` raises it
        if get_worker_info() is None:
            return Loaded(None, error=error)
        return Loaded(None, error=portable(error), stack=traceback.format_exc())


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes started here are not reached by signals that stop a run; this process gets those
    that came meanwhile at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    numbers = {getattr(signal, name) for name in HELD_BACK}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_server() -> None:
    """Start what workers are forked from, without waiting for it: its imports take seconds, beside
    which other work goes on."""
    if METHOD != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker

    data = sorted(name for name in sys.modules if name.startswith("handmim.data."))
    context = multiprocessing.get_context(METHOD)
    context.set_forkserver_preload(["handmim.engine.server_imports", *data])
    with _signals_held_back():
        resource_tracker.ensure_running()  # lets some signals through again
    with _signals_held_back():
        forkserver.ensure_running()


def _begin_worker(worker_id: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # a worker's system parent is the server, which lives as long as its workers
    os._exit(1)


class Loading:
    """Items of a dataset, one per request, in order; a context that ends its workers.

    Args:
        dataset: gives a `Loaded` by request.
        requests: what is asked of it.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: of the tensors.
        generator: that torch draws the workers' base seed from; None takes the global one.
    """

    def __init__(
        self,
        dataset: Dataset[Loaded],
        requests: Sampler[Any],
        num_workers: int,
        *,
        pin_memory: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self._limit_s = _Waiting.limit_s or 0.0
        loader = DataLoader(
            dataset,
            batch_size=None,  # a request is a whole batch
            sampler=requests,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            timeout=self._limit_s / PARTS if num_workers else 0,
            worker_init_fn=_begin_worker if num_workers else None,
            multiprocessing_context=METHOD if num_workers else None,
            pin_memory=pin_memory,
            generator=generator,
        )
        if num_workers:
            start_server()
        others = set(active_children())
        with _signals_held_back():
            self._batches = [iter(loader)]
        self._is_waiting = self._is_stalled = False
        self._workers = set(active_children()) - others
        _RUNNING.add(self)
        # Registered after torch's own, which wait for workers, and so called before them.
        atexit.register(self.kill)

    def __iter__(self) -> Iterator[Loaded]:
        return self

    def __next__(self) -> Loaded:
        """The next item.

        Raises: WorkerDiedError naming the process and how it ended; StalledError naming those that
            give nothing within the time of `limit_waiting`.
        """
        self._is_waiting = True
        for _ in range(PARTS):
            try:
                loaded: Loaded = next(self._batches[0])
            except (RuntimeError, OSError, EOFError) as error:  # the dataset's own are in `loaded`
                if str(error).startswith(TIMED_OUT):
                    continue
                if self._is_stalled:
                    break
                wait([worker.sentinel for worker in self._workers], timeout=LEAVE_S)
                dead = [worker for worker in self._workers if worker.exitcode]
                if not dead:
                    raise
                raise WorkerDiedError(_how_it_ended(dead[0])) from error
            self._is_waiting = False
            return loaded
        workers = ", ".join(str(worker.pid) for worker in self._workers)
        raise StalledError(
            f"rank {own_rank()} stands still: it waited {self._limit_s:.0f} s for loader workers "
            f"({workers}), one of which is stuck or stopped (machine.stall_timeout_s)"
        )

    def __enter__(self) -> "Loading":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def kill(self) -> None:
        """End the workers at once, whatever they are doing."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()

    def end_wait(self) -> None:
        """Where an item is waited for, raise StalledError there: a worker that is stopped while it
        hands one over is no time-out for torch."""
        if self._is_waiting:
            self._is_stalled = True
            self.kill()

    def close(self) -> None:
        """End the workers, those that do not leave within a second by force."""
        if sys.is_finalizing():  # no thread starts any more; `kill` was called
            return
        atexit.unregister(self.kill)
        _RUNNING.discard(self)
        # Torch asks its workers to leave when its iterator is dropped, and may wait for ever for
        # one that is stopped or was killed in the middle of a word.
        leaving = threading.Thread(target=self._batches.clear, daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)
        if leaving.is_alive():
            self.kill()
            leaving.join(END_S)


_RUNNING: weakref.WeakSet[Loading] = weakref.WeakSet()


def kill_workers() -> None:
    """End all workers of this process at once."""
    for loading in list(_RUNNING):
        loading.kill()


def end_waits() -> None:
    """`Loading.end_wait` for all of this process."""
    for loading in list(_RUNNING):
        loading.end_wait()


def _how_it_ended(worker: BaseProcess) -> str:
    code = worker.exitcode or 0
    how = f"with exit code {code}"
    if code < 0:
        how = f"by {signal.Signals(-code).name}"
    if code == 1:
        return (
            f"loader worker {worker.pid} could not start or ended with exit code 1: a script of "
            'your own that starts workers needs `if __name__ == "__main__":` around what it does'
        )
    hint = {"SIGKILL": ": out of memory?", "SIGBUS": ": out of shared memory (/dev/shm)?"}
    return f"loader worker {worker.pid} was ended {how}{hint.get(how[3:], '')}"


def _as_it_is(loaded: Any) -> Any:
    return loaded
