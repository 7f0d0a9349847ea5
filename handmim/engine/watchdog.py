"""Ending a run that stands still: a stuck loader worker, a dead mount, a process that others wait
for."""

import logging
import os
import sys
import threading
import time
import traceback
from typing import NamedTuple

from handmim.engine.workers import end_waits, kill_workers, limit_waiting
from handmim.utils.processes import GOES_ON, STALLED
from handmim.utils.ranks import words_of_ranks
from handmim.utils.run import Run

log = logging.getLogger(__name__)

LOOKS = 20  # within the limit
REPORT_S = 10.0  # for the report: the run's log may lie on what is dead
OTHERS = 0.1  # of the limit: in this time the other processes notice, too


class _Beat(NamedTuple):
    what: str
    number: int | None

    def __str__(self) -> str:
        return self.what if self.number is None else f"{self.what} {self.number}"


class _Last:
    beat = _Beat("the start", None)


def beat(what: str, number: int | None = None) -> None:
    """Say what is waited for from now on; costs nothing.

    Args:
        what: "the batch of step".
        number: 12.
    """
    _Last.beat = _Beat(what, number)


class Watchdog:
    """While it is entered, ends this process, with its workers, when nothing said `beat` for too
    long. Time in which the whole process is stopped does not count. Loader workers have less time,
    so that the main thread can save before.

    Args:
        run: folder of the log, rank, and `stall_timeout_s`; None there watches nothing.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.limit_s = run, run.stall_timeout_s
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        beat("the start")
        if self.limit_s is not None:
            limit_waiting((1 - 2 * OTHERS) * self.limit_s)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        limit_waiting(None)
        self._left.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self.limit_s is not None
        pause = self.limit_s / LOOKS
        seen, still_s, looked = _Last.beat, 0.0, time.monotonic()
        while not self._left.wait(pause):
            now = time.monotonic()
            passed, looked = min(now - looked, 2 * pause), now
            if _Last.beat is not seen:
                seen, still_s = _Last.beat, 0.0
                continue
            still_s += passed
            if still_s >= (1 - 1.5 * OTHERS) * self.limit_s:
                end_waits()
            if still_s >= self.limit_s:
                self._end(seen, still_s)

    def _of_others(self, waited_for: str) -> str:
        """What the other processes of the run wait for, and which are silent."""
        assert self.limit_s is not None
        said = words_of_ranks(waited_for, 2.0 + OTHERS * self.limit_s)
        return "".join(
            f"; rank {rank} does not answer (stopped, dead, or its machine is)"
            if text is None
            else f"; rank {rank} waited for {text}"
            for rank, text in said.items()
        )

    def _end(self, waited_for: _Beat, still_s: float) -> None:
        words = (
            f"rank {self.run.rank} stands still: it waited {still_s:.0f} s for {waited_for}, more "
            f"than {self.limit_s:g} s (machine.stall_timeout_s); {GOES_ON}"
        )
        words += self._of_others(str(waited_for))
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "" if main is None else "".join(traceback.format_stack(main))
        text = f"{words}. The main thread is in:\n{stack}"
        report = threading.Thread(target=log.error, args=(text,), daemon=True)
        report.start()
        report.join(REPORT_S)
        kill_workers()
        os._exit(STALLED)
