"""Loader processes, how they are awaited and end; signals and stalls that end a run.

Workers survive the signals that stop a run until it is saved. A fork of a process with threads can
wait for ever for their locks: they are forked from a server process that starts no thread; where
there is no such server, each starts anew.
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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, ClassVar, NamedTuple

import cv2
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from handmim.utils.processes import GOES_ON, STALLED, THREADS, StalledError, of_signal
from handmim.utils.ranks import portable, words_of_ranks
from handmim.utils.run import Run

log = logging.getLogger(__name__)

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # stop a run
HINTS = {"SIGKILL": ": out of memory?", "SIGBUS": ": out of shared memory (/dev/shm)?"}
LEAVE_S, END_S = 1.0, 5.0
PARTS, TIMED_OUT = 20, "DataLoader timed out"  # time in which all is stopped counts as one part
CHECKS = 20  # of the watchdog within its limit
REPORT_S = 10.0  # for its report: the run's log may lie on what is dead
OTHERS = 0.1  # of the limit: in this time the other processes notice, too
BEATS: deque[str] = deque(["the start"], maxlen=1)  # what this process waits for, see `Watchdog`
beat = BEATS.append  # names what it waits for from now on


def signal_numbers() -> set[int]:
    """Of the signals that stop a run, those that the platform has."""
    return {getattr(signal, name) for name in SIGNALS if hasattr(signal, name)}


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Signals that stop a run do not reach processes started here; this one gets them later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal_numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_server() -> None:
    """Start the process that workers are forked from, without waiting for its imports."""
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


class WorkerDiedError(RuntimeError):
    """A loader worker ended by itself."""

    def __init__(self, worker: BaseProcess) -> None:
        code = worker.exitcode or 0
        how = f"was ended with exit code {code}"
        if code == 1:
            how = (
                "could not start or ended with exit code 1: a script of your own that starts "
                'workers needs `if __name__ == "__main__":` around what it does'
            )
        elif code < 0:
            name = signal.Signals(-code).name
            how = f"was ended by {name}{HINTS.get(name, '')}"
        super().__init__(f"loader worker {worker.pid} {how}")


class Loaded(NamedTuple):
    """A batch from a worker, or why there is none."""

    batch: Any
    replaced: Sequence[tuple[str, str]] = ()  # (name, reason) of samples left out or replaced
    error: Exception | None = None
    stack: str = ""  # of an error in another process


@dataclass
class Attempts(Dataset[Loaded]):
    """Results of `make` by request, or its error: torch would raise a worker's as lines of text."""

    make: Callable[[Any], Loaded]

    def __getitem__(self, request: Any) -> Loaded:
        try:
            return self.make(request)
        except Exception as error:  # noqa: BLE001  `Loading` raises it
            if get_worker_info() is None:
                return Loaded(None, error=error)
            return Loaded(None, error=portable(error), stack=traceback.format_exc())


class Loading(contextlib.AbstractContextManager["Loading", None]):
    """Results of a function by request, in order; a context that ends its workers."""

    running: ClassVar["weakref.WeakSet[Loading]"] = weakref.WeakSet()
    limit_s: ClassVar[float] = 0.0  # for an item, of those that begin from now on; 0 is for ever

    def __init__(
        self,
        make: Callable[[Any], Loaded],
        requests: Iterable[Any],
        num_workers: int,
        *,
        pin_memory: bool = False,
        generator: torch.Generator | None = None,  # of the workers' base seed; else the global one
    ) -> None:
        self._limit_s = Loading.limit_s
        how: dict[str, Any] = {"pin_memory": pin_memory, "generator": generator}
        if num_workers:
            how |= {"timeout": self._limit_s / PARTS, "multiprocessing_context": METHOD}
            how |= {"num_workers": num_workers, "worker_init_fn": begin_worker}
            start_server()
        # A request is a whole batch.
        loader = DataLoader(
            Attempts(make), batch_size=None, sampler=requests, collate_fn=nn.Identity(), **how
        )
        others = set(active_children())
        with signals_held_back():
            self._batches = [iter(loader)]
        self._is_waiting = self._is_stalled = False
        self._workers = set(active_children()) - others
        Loading.running.add(self)
        # Registered after torch's own, which wait for workers, and so called before them.
        atexit.register(self.kill)

    def __next__(self) -> Loaded:
        """The next item. Raises: the error of whoever made it; WorkerDiedError; StalledError naming
        the workers that give nothing within `limit_s`."""
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
                raise WorkerDiedError(dead[0]) from error
            self._is_waiting = False
            if loaded.error is None:
                return loaded
            raise loaded.error from RuntimeError(f"\n{loaded.stack}") if loaded.stack else None
        workers = ", ".join(str(worker.pid) for worker in self._workers)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        text = f"rank {rank} stands still: it waited {self._limit_s:.0f} s for loader workers"
        text += f" ({workers}), one of which is stuck or stopped (machine.stall_timeout_s)"
        raise StalledError(text)

    def kill(self) -> None:
        """End the workers at once, whatever they are doing."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()

    def end_wait(self) -> None:
        """Raise StalledError where an item is awaited: torch waits for a worker that is stopped."""
        if self._is_waiting:
            self._is_stalled = True
            self.kill()

    def __exit__(self, *error: object) -> None:
        """End the workers, those that do not leave within a second by force."""
        if sys.is_finalizing():  # no thread starts any more; `kill` was called
            return
        atexit.unregister(self.kill)
        Loading.running.discard(self)
        # Torch asks its workers to leave when its iterator is dropped, and may wait for ever for
        # one that is stopped or was killed while it sent something.
        leaving = threading.Thread(target=self._batches.clear, daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)
        if leaving.is_alive():
            self.kill()
            leaving.join(END_S)


class Stopped(SystemExit):
    """A signal ended the run where no step was under way."""

    code: int  # 128 + its number


class StopSignals:
    """Catches the signals that stop a run, in the main thread; SIGHUP is left to nohup. Until
    `is_deferred`, one raises `Stopped` at once. After it, one is `received`, for the caller to save
    between two steps; unless `is_answered`, it raises `Stopped` at the end. A second SIGINT raises
    KeyboardInterrupt. Entered within another one, it gives that one."""

    _active: ClassVar["StopSignals | None"] = None

    def __init__(self) -> None:
        self.received: str | None = None
        self.is_deferred = self.is_answered = False
        self._num_interrupts = 0
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._num_interrupts += name == "SIGINT"
        if self._num_interrupts > 1:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = name
            if not self.is_deferred:
                raise Stopped(of_signal(name))

    def __enter__(self) -> "StopSignals":
        if StopSignals._active is not None:
            return StopSignals._active
        if threading.current_thread() is not threading.main_thread():
            return self  # nothing to catch here
        for number in signal_numbers():
            is_hangup = number == getattr(signal, "SIGHUP", None)
            if not (is_hangup and signal.getsignal(number) == signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._handle)
        StopSignals._active = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if StopSignals._active is not self:
            return
        StopSignals._active = None
        for number, before in self._before.items():
            signal.signal(number, before)
        if kind is Stopped:
            log.warning("%s: stopped where no step was under way, no step is lost", self.received)
        elif kind is None and self.received is not None and not self.is_answered:
            raise Stopped(of_signal(self.received))


class Watchdog:
    """Ends this process, with its workers, when `beat` was not called for `stall_timeout_s` of its
    run; None there watches nothing. Time in which the whole process is stopped does not count.
    Loader workers have less time, so that the main thread can save before."""

    def __init__(self, run: Run) -> None:
        self.run, self.limit_s = run, run.stall_timeout_s or 0.0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> None:
        beat("the start")
        Loading.limit_s = (1 - 2 * OTHERS) * self.limit_s
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        Loading.limit_s = 0.0
        self._left.set()
        self._thread.join()

    def _watch(self) -> None:
        if not (pause := self.limit_s / CHECKS):
            return
        seen, still_s, checked = BEATS[-1], 0.0, time.monotonic()
        while not self._left.wait(pause):
            now = time.monotonic()
            passed, checked = min(now - checked, 2 * pause), now
            if BEATS[-1] is not seen:
                seen, still_s = BEATS[-1], 0.0
                continue
            still_s += passed
            if still_s >= (1 - 1.5 * OTHERS) * self.limit_s:
                for loading in list(Loading.running):
                    loading.end_wait()
            if still_s >= self.limit_s:
                self._end(seen, still_s)

    def _end(self, awaited: str, still_s: float) -> None:
        text = f"rank {self.run.rank} stands still: it waited {still_s:.0f} s for {awaited}, more "
        text += f"than {self.limit_s:g} s (machine.stall_timeout_s); {GOES_ON}"
        for rank, words in words_of_ranks(awaited, 2.0 + OTHERS * self.limit_s).items():
            silent = "does not answer (stopped, dead, or its machine is)"
            text += f"; rank {rank} {silent if words is None else f'waited for {words}'}"
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "" if main is None else "".join(traceback.format_stack(main))
        text += f". The main thread is in:\n{stack}"
        report = threading.Thread(target=log.error, args=(text,), daemon=True)
        report.start()
        report.join(REPORT_S)
        for loading in list(Loading.running):
            loading.kill()
        os._exit(STALLED)
