"""Files of a table: Markdown, CSV, JSON and plots, and copies of them for publication."""

import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handmim.experiments.overrides import as_overrides
from handmim.experiments.plan import STAGES, Plan, Run
from handmim.experiments.plots import Spot, curve_plot, dot_plot, save_plot
from handmim.experiments.store import json_text
from handmim.experiments.summary import Row, as_csv, as_markdown, rows_of, used_columns
from handmim.experiments.table import Table, fraction_name
from handmim.utils.files import write_atomic
from handmim.utils.json_files import read_json

RUNS = "runs.json"
PLOTS = ("plot", "curve")  # stems; curve only of tables with `curves`
ABSOLUTE = re.compile(r"(?:[A-Za-z]:)?[/\\]|~")  # begins a path, of a drive or of a home too


def write_results(plan: Plan, *, with_plots: bool = True) -> list[Row]:
    """Write the table as it is now: table.md, table.csv, runs.json (every metric of every finished
    run), plot.png and .pdf, and curve.png and .pdf where the table has curves; returns its rows.

    `with_plots=False` leaves out the plots, which take a second.
    """
    table, folder, runs = plan.table, plan.folder, plan.shown()
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(table, runs)
    finished = [run for run in runs if run.state == "finished"]
    write_atomic(folder / "table.md", as_markdown(table, rows, finished))
    write_atomic(folder / "table.csv", as_csv(table, rows))
    write_atomic(folder / RUNS, json_text([run.read() for run in finished]))
    if not with_plots:
        return rows
    panels = {
        c.label: {row.label: row.entries[c.key].values for row in rows}
        for c in used_columns(table, rows)
        if c.better is not None
    }
    save_plot(dot_plot(table.title, panels), folder / PLOTS[0])
    if table.curves:
        save_plot(curve_plot(table.title, curves_of(table, finished)), folder / PLOTS[1])
    return rows


def curves_of(table: Table, runs: Sequence[Run]) -> dict[str, dict[str, list[Spot]]]:
    """The curves of finished runs by panel and variant; a panel without values is left out."""
    read = [(run.variant.name, result) for run in runs if (result := run.read()) is not None]
    panels: dict[str, dict[str, list[Spot]]] = {}
    for key, label in table.curves:
        panel = {}
        for variant in table.variants:
            own = [result["metrics"] for name, result in read if name == variant.name]
            spots = [_spot(own, fraction_name(f), key) for f in table.fractions]
            panel[variant.label] = sorted(spot for spot in spots if spot is not None)
        if any(panel.values()):
            panels[label] = panel
    return panels


def _spot(runs: Sequence[Mapping[str, float | None]], stage: str, key: str) -> Spot | None:
    pairs = [(run.get(f"{stage}/num_labels"), run.get(f"{stage}/{key}")) for run in runs]
    known = [(num, value) for num, value in pairs if num is not None and value is not None]
    if not known:
        return None
    return Spot(statistics.fmean(n for n, _ in known), tuple(value for _, value in known))


def publish(name: str, folder: Path, out: Path) -> list[Path]:
    """Copy a table's files to <out>/<name>.md, .csv, .json, .png and .pdf, and to
    <name>-curve.png and .pdf; returns the copies."""
    out.mkdir(parents=True, exist_ok=True)
    files = {f"table{end}": f"{name}{end}" for end in (".md", ".csv")}
    files |= {f"plot{end}": f"{name}{end}" for end in (".png", ".pdf")}
    files |= {f"curve{end}": f"{name}-curve{end}" for end in (".png", ".pdf")}
    copies = [(folder / file, out / copy) for file, copy in files.items()]
    copies = [(file, copy) for file, copy in copies if file.is_file()]
    for file, copy in copies:
        shutil.copyfile(file, copy)
    write_atomic(out / f"{name}.json", json_text(without_paths(read_json(folder / RUNS))))
    return [*(copy for _, copy in copies), out / f"{name}.json"]


def without_paths(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results for other readers: without hosts, and with the last part of absolute paths only."""
    return [
        {k: _short_overrides(v) if k == "overrides" else v for k, v in run.items() if k != "host"}
        for run in runs
    ]


def _short_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: as_overrides(v) if k in STAGES else v for k, v in overrides.items()}
    return {key: _short(value) for key, value in plain.items()}


def _short(node: Any) -> Any:
    """Plain containers with `.../name` for every absolute path."""
    if isinstance(node, Mapping):
        return {key: _short(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_short(value) for value in node]
    if not isinstance(node, str) or ABSOLUTE.match(node) is None:
        return node
    separators = r"/+" if node[0] in "/~" else r"[/\\]+"
    return ".../" + re.split(separators, node.rstrip("/\\ "))[-1]
