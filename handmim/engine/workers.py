"""Loader workers, and the watchdog that ends a run which stalls.

Workers start without the threads of this process, survive the signals that stop a run until it is
saved, and end with it. A fork of a process that has threads can wait for ever: locks that were held
stay held. Workers are therefore forked from a server process that imports what they need and starts
no thread; where there is no such server, each starts anew.
"""

import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar, NamedTuple

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from handmim.engine.signals import StopSignals
from handmim.utils.processes import GOES_ON, STALLED, StalledError
from handmim.utils.ranks import own_rank, portable, words_of_ranks
from handmim.utils.run import Run

log = logging.getLogger(__name__)

METHODS = multiprocessing.get_all_start_methods()
METHOD = "forkserver" if "forkserver" in METHODS else "spawn"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
LEAVE_S, END_S = 1.0, 5.0
PARTS, TIMED_OUT = 20, "DataLoader timed out"  # time in which all is stopped counts as one part
CHECKS = 20  # of the watchdog within its limit
REPORT_S = 10.0  # for its report: the run's log may lie on what is dead
OTHERS = 0.1  # of the limit: in this time the other processes notice, too


class WorkerDiedError(RuntimeError):
    """A loader worker ended by itself."""


class _StackError(Exception):
    """The cause of an error of another process: its stack, as text."""


class Loaded(NamedTuple):
    """A batch from a worker, or why there is none."""

    batch: Any
    replaced: Sequence[tuple[str, str]] = ()  # (name, reason) of samples left out or replaced
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
    """The result of `make`, or its error: torch would raise a worker's again as lines of text."""
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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, StopSignals.numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Libraries of a process started here allow themselves one thread: one that the server had
    started would be missing in its forks."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def start_server() -> None:
    """Start the process that workers are forked from, without waiting for it: its imports take
    seconds, beside which other work goes on."""
    if METHOD != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker

    data = sorted(name for name in sys.modules if name.startswith("handmim.data."))
    context = multiprocessing.get_context(METHOD)
    context.set_forkserver_preload(["cv2", "torch", "handmim.engine.prefetch", *data])
    with _signals_held_back():
        resource_tracker.ensure_running()  # lets some signals through again
    with _signals_held_back(), _one_thread_each():
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
        requests: in order.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: of the tensors.
        generator: that torch draws the workers' base seed from; None takes the global one.
    """

    running: ClassVar["weakref.WeakSet[Loading]"] = weakref.WeakSet()
    limit_s: ClassVar[float] = (
        0.0  # how long one that begins from now on waits for an item; 0 is for ever
    )

    def __init__(
        self,
        dataset: Dataset[Loaded],
        requests: Iterable[Any],
        num_workers: int,
        *,
        pin_memory: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self._limit_s = Loading.limit_s
        loader = DataLoader(
            dataset,
            batch_size=None,  # a request is a whole batch
            sampler=requests,
            collate_fn=_unchanged,
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
        Loading.running.add(self)
        # Registered after torch's own, which wait for workers, and so called before them.
        atexit.register(self.kill)

    def __iter__(self) -> Iterator[Loaded]:
        return self

    def __next__(self) -> Loaded:
        """The next item.

        Raises: WorkerDiedError naming the process and how it ended; StalledError naming those that
            give nothing within `limit_s`.
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
                raise WorkerDiedError(_end_of(dead[0])) from error
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
        """Raise StalledError where an item is waited for: torch does not time out on a worker that
        is stopped while it hands one over."""
        if self._is_waiting:
            self._is_stalled = True
            self.kill()

    def close(self) -> None:
        """End the workers, those that do not leave within a second by force."""
        if sys.is_finalizing():  # no thread starts any more; `kill` was called
            return
        atexit.unregister(self.kill)
        Loading.running.discard(self)
        # Torch asks its workers to leave when its iterator is dropped, and may wait for ever for
        # one that is stopped or was killed in the middle of a word.
        leaving = threading.Thread(target=self._batches.clear, daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)
        if leaving.is_alive():
            self.kill()
            leaving.join(END_S)


def _unchanged(loaded: Any) -> Any:
    return loaded


def _end_of(worker: BaseProcess) -> str:
    code = worker.exitcode or 0
    if code == 1:
        return (
            f"loader worker {worker.pid} could not start or ended with exit code 1: a script of "
            'your own that starts workers needs `if __name__ == "__main__":` around what it does'
        )
    if code > 0:
        return f"loader worker {worker.pid} was ended with exit code {code}"
    hints = {"SIGKILL": ": out of memory?", "SIGBUS": ": out of shared memory (/dev/shm)?"}
    name = signal.Signals(-code).name
    return f"loader worker {worker.pid} was ended by {name}{hints.get(name, '')}"


class _Beat:
    last: tuple[str, int | None] = ("the start", None)


def beat(awaited: str, number: int | None = None) -> None:
    """Name what this process waits for from now on ("the batch of step", 12); costs nothing."""
    _Beat.last = awaited, number


class Watchdog:
    """Ends this process, with its workers, when `beat` was not called for too long.

    Time in which the whole process is stopped does not count. Loader workers have less time, so
    that the main thread can save before.

    Args:
        run: folder of the log, rank, and `stall_timeout_s`; None there watches nothing.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.limit_s = run, run.stall_timeout_s or 0.0
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        beat("the start")
        if self.limit_s:
            Loading.limit_s = (1 - 2 * OTHERS) * self.limit_s
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        Loading.limit_s = 0.0
        self._left.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        pause = self.limit_s / CHECKS
        seen, still_s, checked = _Beat.last, 0.0, time.monotonic()
        while not self._left.wait(pause):
            now = time.monotonic()
            passed, checked = min(now - checked, 2 * pause), now
            if _Beat.last is not seen:
                seen, still_s = _Beat.last, 0.0
                continue
            still_s += passed
            if still_s >= (1 - 1.5 * OTHERS) * self.limit_s:
                for loading in list(Loading.running):
                    loading.end_wait()
            if still_s >= self.limit_s:
                awaited, number = seen
                self._end(awaited if number is None else f"{awaited} {number}", still_s)

    def _of_others(self, awaited: str) -> str:
        """What the other processes of the run wait for, and which do not answer."""
        answers = words_of_ranks(awaited, 2.0 + OTHERS * self.limit_s)
        return "".join(
            f"; rank {rank} does not answer (stopped, dead, or its machine is)"
            if text is None
            else f"; rank {rank} waited for {text}"
            for rank, text in answers.items()
        )

    def _end(self, awaited: str, still_s: float) -> None:
        text = (
            f"rank {self.run.rank} stands still: it waited {still_s:.0f} s for {awaited}, more "
            f"than {self.limit_s:g} s (machine.stall_timeout_s); {GOES_ON}"
        )
        text += self._of_others(awaited)
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "" if main is None else "".join(traceback.format_stack(main))
        text += f". The main thread is in:\n{stack}"
        report = threading.Thread(target=log.error, args=(text,), daemon=True)
        report.start()
        report.join(REPORT_S)
        for loading in list(Loading.running):
            loading.kill()
        os._exit(STALLED)
