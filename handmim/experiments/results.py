"""Results of a table: mean and spread over seeds as Markdown and CSV, all runs as JSON, plots."""

import csv
import io
import itertools
import math
import shutil
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from handmim.experiments.plots import Spot, curve_plot, dot_plot, mean_sd, save_plot
from handmim.experiments.runs import Plan, Run, json_text
from handmim.experiments.table import Column, Table, fraction_name
from handmim.utils.console import markdown_table
from handmim.utils.files import write_atomic

RUNS = "runs.json"

Values = dict[int, float]  # of a metric, by finished seed


def _mean_text(values: Values, form: str, unit: str = "") -> str:
    mean, sd = mean_sd(values.values())
    spread = "" if math.isnan(sd) else f" ± {sd:{form.lstrip('+')}}"
    return f"{mean:{form}}{unit}{spread}" if values else "-"


class Row(NamedTuple):
    """One variant of the table."""

    name: str
    label: str
    values: dict[str, Values]  # by column key
    states: dict[int, str]  # by seed
    changes: dict[str, Values]  # of the values, in per cent of the baseline's of that seed

    @property
    def num_finished(self) -> int:
        """Seeds that count."""
        return list(self.states.values()).count("finished")

    def is_short(self, column: Column) -> bool:
        """Whether some of its finished seeds, not all, have this metric."""
        return 0 < len(self.values[column.key]) < self.num_finished

    def text(self, column: Column) -> str:
        """Mean ± spread, with the number of seeds in brackets where not all have the metric."""
        values = self.values[column.key]
        text = _mean_text(values, f".{column.decimals}f")
        return f"{text} ({len(values)})" if self.is_short(column) else text

    def seeds_text(self) -> str:
        """Finished seeds, and others by their state."""
        states, done = list(self.states.values()), self.num_finished
        text = str(done) if done == len(states) else f"{done} of {len(states)}"
        bad = [f"{n} {s}" for s in ("failed", "stale") if (n := states.count(s))]
        return f"{text} ({', '.join(bad)})" if bad else text


def rows_of(table: Table, runs: Sequence[Run]) -> list[Row]:
    """Variants that have runs; only finished runs give values. One seed gives all variants the same
    labels, so changes are those of single seeds; zero in the baseline has no percentage."""
    rows, keys = [], [c.key for c in table.columns]
    for variant in table.variants:
        made = [run for run in runs if run.variant.name == variant.name]
        states = {run.seed: run.state for run in made}
        done = {run.seed: run.read()["metrics"] for run in made if states[run.seed] == "finished"}
        values = {k: {s: m[k] for s, m in done.items() if m.get(k) is not None} for k in keys}
        if made:
            rows.append(Row(variant.name, variant.label, values, states, {}))
    base: dict[str, Values] = next((r.values for r in rows if r.name == table.baseline), {})
    for row, (key, of) in itertools.product(rows, base.items()):
        own = row.values[key].items()
        row.changes[key] = {seed: 100 * (v / of[seed] - 1) for seed, v in own if of.get(seed)}
    return rows


def best_rows(rows: Sequence[Row], column: Column) -> set[str]:
    """Rows with the best mean as it is shown, of those with the most values."""
    values = {row.name: row.values[column.key] for row in rows if row.values[column.key]}
    most = max(map(len, values.values()), default=0)
    full = {name: of.values() for name, of in values.items() if len(of) == most}
    means = {name: round(statistics.fmean(of), column.decimals) for name, of in full.items()}
    if column.better is None or len(means) < 2:
        return set()
    best = min(means.values()) if column.better == "lower" else max(means.values())
    return {name for name, mean in means.items() if mean == best}


def used_columns(table: Table, rows: Sequence[Row]) -> list[Column]:
    """Columns with a value in any row, or all while there is none."""
    used = [c for c in table.columns if any(row.values[c.key] for row in rows)]
    return used or list(table.columns)


def as_csv(table: Table, rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """A row per variant: name, label, finished seeds, then mean, spread and values by column, with
    a baseline the mean change from it in per cent (`:change`), and the commits of its `runs`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ["", ":sd", ":values", *[":change"] * (table.baseline is not None)]
    heads = [f"{c.key}{part}" for c in table.columns for part in parts]
    writer.writerow(["variant", "label", "seeds", *heads, "commits"])
    for row in rows:
        fields: list[str] = []
        for key, of in row.values.items():
            numbers = *mean_sd(of.values()), mean_sd(row.changes.get(key, {}).values())[0]
            mean, sd, change = ("" if math.isnan(x) else f"{x:.6g}" for x in numbers)
            fields += [mean, sd, " ".join(f"{v:.6g}" for v in of.values()), change][: len(parts)]
        own = [run.read() for run in runs if run.variant.name == row.name]
        fields.append(" ".join(_commits(own)))
        writer.writerow([row.name, row.label, row.num_finished, *fields])
    return out.getvalue()


def as_markdown(table: Table, rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """The table, its question, how to read it, and which code made it; `runs` are finished."""
    columns = used_columns(table, rows)
    best = {c.key: best_rows(rows, c) for c in columns}
    lines = []
    for row in rows:
        texts = {c.key: row.text(c) for c in columns}
        cells = [f"**{text}**" if row.name in best[key] else text for key, text in texts.items()]
        lines.append([row.label, row.seeds_text(), *cells])
    body = markdown_table(["", "seeds", *(c.label for c in columns)], lines)
    higher = ", ".join(c.label for c in columns if c.better == "higher")
    reading = "Lower is better" + f", except for {higher}" * bool(higher)
    if any(row.is_short(c) for row in rows for c in columns):
        reading += ". A number in brackets counts the seeds that have the metric, where not all do"
    return (
        f"# {table.title}\n\n{table.question}\n\n{body}\n\n"
        "Mean ± sample standard deviation over seeds. A seed has its own pretraining, choice of "
        "labels and fine-tuning. Bold is the best mean of the rows with the most values; a spread "
        f"of the same size may contradict it. {reading}.\n\n"
        f"{_comparison(table, rows, columns)}{_provenance(runs)}\n"
    )


def _comparison(table: Table, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The section with the difference of every row to the baseline; empty while there is none."""
    shown = [c for c in columns if c.better is not None]
    others = [row for row in rows if row.name != table.baseline]
    if not any(row.changes.get(c.key) for row in others for c in shown):
        return ""
    label = next(v.label for v in table.variants if v.name == table.baseline)
    cells = [[_mean_text(row.changes[c.key], "+.1f", " %") for c in shown] for row in others]
    lines = [[row.label, *texts] for row, texts in zip(others, cells, strict=True)]
    return (
        f"## Against {label}\n\n{markdown_table(['', *(c.label for c in shown)], lines)}\n\n"
        f"Per cent of the metric of {label}, mean ± sample standard deviation of the changes of "
        "single seeds that both rows have. Where lower is better, a minus is a gain.\n\n"
    )


def _commits(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Commits of the code of all stages behind results; + marks local changes."""
    stages = [stage for result in results for stage in result["stages"].values()]
    commits = [c for stage in stages for c in stage.get("commits") or [stage]]
    return sorted({(c["git_sha"] or "no git")[:10] + "+" * bool(c["git_dirty"]) for c in commits})


def _provenance(runs: Sequence[Run]) -> str:
    """Commits, machines and threads behind the numbers, and runs with other defaults."""
    results = [run.read() for run in runs]
    if not results:
        return "No run is finished yet."
    stages = [stage for result in results for stage in result["stages"].values()]
    threads = sorted({str(s["threads"]) for s in stages})
    machines = sorted({f"{r['machine']}, torch {r['torch']}" for r in results})
    text = (
        f"{len(results)} runs; code {', '.join(_commits(results))} (+ = with local changes); "
        f"{'; '.join(machines)}; {' or '.join(threads)} thread(s) per run."
    )
    outdated = defaultdict(list)
    for run in runs:
        if run.is_outdated:
            outdated[run.variant.label].append(str(run.seed))
    if names := [f"{k} (seed{'s' * (len(s) > 1)} {', '.join(s)})" for k, s in outdated.items()]:
        text += " Made under other defaults in configs/ than today's, or by an older version "
        text += f"(overwrite=true makes them again): {'; '.join(names)}."
    return text


def write_results(plan: Plan, *, with_plots: bool = True) -> None:
    """Write the table as it is now: table.md, table.csv, runs.json of the finished runs, and with
    plots, which take a second, plot.png and .pdf, and curve.png and .pdf where it has curves."""
    table, folder, runs = plan.table, plan.folder, plan.shown()
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(table, runs)
    finished = [run for run in runs if run.state == "finished"]
    write_atomic(folder / "table.md", as_markdown(table, rows, finished))
    write_atomic(folder / "table.csv", as_csv(table, rows, finished))
    write_atomic(folder / RUNS, json_text([run.read() for run in finished]))
    if not with_plots:
        return
    shown = [c for c in used_columns(table, rows) if c.better is not None]
    panels = {c.label: {r.label: list(r.values[c.key].values()) for r in rows} for c in shown}
    save_plot(dot_plot(table.title, panels), folder / "plot")
    if table.curves:
        save_plot(curve_plot(table.title, curves_of(table, finished)), folder / "curve")


def curves_of(table: Table, runs: Sequence[Run]) -> dict[str, dict[str, list[Spot]]]:
    """The curves of finished runs by panel and variant; a panel without values is left out."""
    results = [result for run in runs if (result := run.read())]
    panels: dict[str, dict[str, list[Spot]]] = {}
    for key, label in table.curves:
        panel: dict[str, list[Spot]] = {v.label: [] for v in table.variants}
        for variant in table.variants:
            own = [result["metrics"] for result in results if result["variant"] == variant.name]
            for stage in map(fraction_name, table.fractions):
                pairs = [(of.get(f"{stage}/num_labels"), of.get(f"{stage}/{key}")) for of in own]
                if known := [pair for pair in pairs if None not in pair]:
                    nums, values = zip(*known, strict=True)
                    panel[variant.label].append((statistics.fmean(nums), values))
            panel[variant.label].sort()
        if any(panel.values()):
            panels[label] = panel
    return panels


def publish(name: str, folder: Path, out: Path) -> list[Path]:
    """Copy a table's numbers and plots to <out>/<name>.csv and .png, curves to <name>-curve.png;
    the copies."""
    out.mkdir(parents=True, exist_ok=True)
    copies = {
        "table.csv": f"{name}.csv",
        "plot.png": f"{name}.png",
        "curve.png": f"{name}-curve.png",
    }
    there = {file: copy for file, copy in copies.items() if (folder / file).is_file()}
    return [Path(shutil.copyfile(folder / file, out / copy)) for file, copy in there.items()]
