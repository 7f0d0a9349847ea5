"""What a terminal shows: tables of results, and the progress of a long job."""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

PIPE_WIDTH = 120  # a pipe is not a narrow terminal: headings must not be cut
METRICS = (
    ("mpjpe_mm", "MPJPE mm"),
    ("mpvpe_mm", "MPVPE mm"),
    ("pa_mpjpe_mm", "PA-MPJPE mm"),
    ("pa_mpvpe_mm", "PA-MPVPE mm"),
    ("pa_f5", "PA-F@5"),
    ("pa_f15", "PA-F@15"),
    ("pa_auc_joints", "AUC J"),
    ("pa_auc_verts", "AUC V"),
    ("err2d_percent", "2D %"),
)
EVERY_S = 15.0  # between log lines


def metric_text(key: str, value: float | None) -> str:
    """A metric as tables show it: mm and ms with two decimals, seconds with one, shares with
    three; a dash where it is missing."""
    if value is None or value != value:
        return "-"
    digits = 2 if key.endswith("_mm") or key.startswith("ms_") else 1 if key == "seconds" else 3
    return f"{value:.{digits}f}"


def print_table(table: Table, pipe_width: int = PIPE_WIDTH) -> None:
    """Print a table; `pipe_width` columns wide where no terminal gives a width."""
    Console(width=None if Console().is_terminal else pipe_width).print(table)


def print_metrics(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[tuple[str, str]] = METRICS,
    title: str | None = None,
) -> None:
    """Print the metrics of each label as a row; columns are keys and headings."""
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for _, heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, metrics in rows.items():
        table.add_row(label, *(metric_text(key, metrics.get(key)) for key, _ in columns))
    print_table(table)


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1
) -> str:
    """A Markdown table, its first `num_left` columns aligned left, the others right; a pipe in a
    cell becomes a slash."""
    marks = ["---" if i < num_left else "---:" for i in range(len(headings))]
    lines = (headings, marks, *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


class Progress:
    """Shows how much of a job is done, from the first update on; a context manager. A terminal gets
    a bar, else there is a log line now and then.

    Without `log`, nothing is shown but on a terminal; `done` items were done before.
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
        self.total, self.what, self.every_s = total, what, every_s
        self.log = log if shown else None
        self._began = self._last = time.perf_counter()
        self._first = done
        self.is_bar = shown and sys.stderr.isatty()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        console = Console(stderr=True)
        self._bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(what, total=total, completed=done)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_bar:
            self._bar.stop()

    def rate(self, done: int) -> float:
        """Items per second since this object was made."""
        return (done - self._first) / max(time.perf_counter() - self._began, 1e-9)

    def update(
        self, done: int | Callable[[], int], text: str | None = None, total: int | None = None
    ) -> None:
        """Show that `done` items, or as many as it counts when a line or bar is due, are done.

        Others replace the text beside the bar and the total.
        """
        self.total = self.total if total is None else total
        now = time.perf_counter()
        is_due = self.log is not None and now - self._last > self.every_s
        if not (self.is_bar or is_due):
            return
        count = done() if callable(done) else done
        if self.is_bar:
            self._bar.start()
            self._bar.update(self._task, completed=count, total=self.total, description=text)
        elif self.log is not None:
            self._last = now
            self.log.info("%d of %s %s, %.0f/s", count, self.total, self.what, self.rate(count))
