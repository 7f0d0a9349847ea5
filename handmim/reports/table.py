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


def metrics_table(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[tuple[str, str]] = COLUMNS,
    title: str | None = None,
) -> Table:
    """A row per predictor; millimetres with two decimals, shares with three, missing figures as a
    dash."""
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for _, heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in rows.items():
        cells = []
        for key, _ in columns:
            value = figures.get(key)
            digits = 2 if key.endswith("_mm") else 1 if key == "seconds" else 3
            cells.append("-" if value is None or value != value else f"{value:.{digits}f}")
        table.add_row(name, *cells)
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
