"""What ends a run from outside: signals that stop it, and a watchdog when it stalls."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any, ClassVar

from handmim.engine.workers import BEATS, Loading, beat, signal_numbers
from handmim.utils.processes import GOES_ON, STALLED, of_signal
from handmim.utils.ranks import words_of_ranks
from handmim.utils.run import Run

log = logging.getLogger(__name__)

CHECKS = 20  # of the watchdog within its limit
REPORT_S = 10.0  # for its report: the run's log may lie on what is dead
OTHERS = 0.1  # of the limit: in this time the other processes notice, too


class Stopped(SystemExit):
    """A signal ended the run where no step was under way."""

    code: int  # 128 + its number


class StopSignals:
    """Catches the signals that stop a run, in the main thread; SIGHUP is left to nohup.

    Until `is_deferred`, a signal raises `Stopped` at once. After it, a signal is `received`, for
    the caller to save between two steps; unless `is_answered`, it raises `Stopped` at the end. A
    second SIGINT raises KeyboardInterrupt. Entered within another one, it gives that one.
    """

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
