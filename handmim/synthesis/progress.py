"""How far a long job is: a bar on a terminal, else lines in the log."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from handmim.render.workers import LoggedProgress

log = logging.getLogger(__name__)

Report = Callable[[], None]


@contextmanager
def progress(total: int, finished: Callable[[], int]) -> Iterator[Report]:
    """Yields what to call now and then.

    Args:
        total: images to make.
        finished: counts those that are made.
    """
    if not sys.stderr.isatty():
        logged = LoggedProgress(log.info, total)
        yield lambda: logged(finished)
        return
    columns = (BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.update(task, completed=finished())
