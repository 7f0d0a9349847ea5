"""Tables of results: on the terminal by rich, in Markdown, and how a metric is written."""

from collections.abc import Mapping, Sequence

from rich.console import Console
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


def metric_text(key: str, value: float | None) -> str:
    """A metric as tables show it: millimetres and milliseconds with two decimals, seconds with one,
    shares with three; a dash where it is missing."""
    if value is None or value != value:
        return "-"
    digits = 2 if key.endswith("_mm") or key.startswith("ms_") else 1 if key == "seconds" else 3
    return f"{value:.{digits}f}"


def metrics_table(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[tuple[str, str]] = METRICS,
    title: str | None = None,
) -> Table:
    """A row per predictor, metrics as `metric_text`.

    Args:
        rows: metrics by key, by label.
        columns: key and heading.
        title: above the table.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for _, heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, metrics in rows.items():
        table.add_row(label, *(metric_text(key, metrics.get(key)) for key, _ in columns))
    return table


def print_table(table: Table, pipe_width: int = PIPE_WIDTH) -> None:
    """Print a table; `pipe_width` columns wide where no terminal gives a width."""
    console = Console()
    Console(width=None if console.is_terminal else pipe_width).print(table)


def print_metrics(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[tuple[str, str]] = METRICS,
    title: str | None = None,
) -> None:
    """Print `metrics_table`."""
    print_table(metrics_table(rows, columns, title))


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1
) -> str:
    """A Markdown table without a final newline.

    Args:
        headings: of the columns.
        rows: cells; a pipe in them becomes a slash.
        num_left: first columns that are aligned left; the others are aligned right.
    """
    marks = ["---" if i < num_left else "---:" for i in range(len(headings))]
    lines = (headings, marks, *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
