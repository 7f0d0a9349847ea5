"""Result tables on the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

COLUMNS = (
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


def shown(key: str, value: float | None) -> str:
    """A figure as tables show it: millimetres and milliseconds with two decimals, seconds with one,
    shares with three; a dash where it is missing."""
    if value is None or value != value:
        return "-"
    digits = 2 if key.endswith("_mm") or key.startswith("ms_") else 1 if key == "seconds" else 3
    return f"{value:.{digits}f}"


def metrics_table(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[tuple[str, str]] = COLUMNS,
    title: str | None = None,
) -> Table:
    """A row per predictor, figures as `shown`."""
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for _, heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in rows.items():
        table.add_row(name, *(shown(key, figures.get(key)) for key, _ in columns))
    return table


def print_metrics(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[tuple[str, str]] = COLUMNS,
    title: str | None = None,
) -> None:
    """Print `metrics_table`; joints and vertices are aligned separately in PA figures."""
    console = Console()
    # A pipe is not a narrow terminal: figures must not be cut to "PA-MP...".
    width = None if console.is_terminal else 120
    Console(width=width).print(metrics_table(rows, columns, title))
