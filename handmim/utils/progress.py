"""Progress of a long job: a bar on a terminal, else a log line now and then."""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

EVERY_S = 15.0  # between log lines


class Progress:
    """Shows how much of a job is done, from the first update on; a context manager.

    Args:
        total: items of the job; None: `update` gives it.
        what: name of the items.
        done: items that were done before.
        log: takes the lines; None: nothing without a terminal.
        shown: False shows nothing at all.
        every_s: seconds between lines.
    """

    def __init__(
        self,
        total: int | None,
        what: str = "images",
        *,
        done: int = 0,
        log: logging.Logger | None = None,
        shown: bool = True,
        every_s: float = EVERY_S,
    ) -> None:
        self.total, self.what, self.log, self.every_s = total, what, log, every_s
        self._began, self._first = time.perf_counter(), done
        self._last = self._began
        self._bar: Bar | None = None
        self._shown = shown
        if shown and sys.stderr.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            console = Console(stderr=True)
            self._bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._task = self._bar.add_task(what, total=total, completed=done)

    @property
    def is_bar(self) -> bool:
        """Whether a terminal shows a bar."""
        return self._bar is not None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def rate(self, done: int) -> float:
        """Items per second since this object was made."""
        return (done - self._first) / max(time.perf_counter() - self._began, 1e-9)

    def update(
        self, done: int | Callable[[], int], text: str | None = None, total: int | None = None
    ) -> None:
        """Show that `done` items are done.

        Args:
            done: items, or a function that counts them; called only when a line or bar is due.
            text: replaces the text beside the bar.
            total: replaces that of the job.
        """
        self.total = self.total if total is None else total
        if self._bar is not None:
            self._bar.start()
            count = done() if callable(done) else done
            self._bar.update(self._task, completed=count, total=self.total, description=text)
            return
        now = time.perf_counter()
        if self._shown and self.log is not None and now - self._last > self.every_s:
            self._last, count = now, done() if callable(done) else done
            rate = self.rate(count)
            self.log.info("%d of %s %s, %.0f/s", count, self.total, self.what, rate)
