"""Mean and spread of every metric of a table over seeds, as Markdown and as CSV."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from handmim.experiments.plan import Run
from handmim.experiments.table import Column, Table
from handmim.utils.console import markdown_table


class Entry(NamedTuple):
    """A metric of one variant: the value of every finished seed that has it."""

    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()  # of the values

    @property
    def mean(self) -> float | None:
        """None where nothing is finished."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None for fewer than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class Row(NamedTuple):
    """One variant of the table."""

    name: str
    label: str
    entries: dict[str, Entry]  # by column key
    states: dict[int, str]  # by seed

    @property
    def num_finished(self) -> int:
        """Seeds that count."""
        return list(self.states.values()).count("finished")

    def is_short(self, column: Column) -> bool:
        """Whether some of its finished seeds, not all, have this metric."""
        return 0 < len(self.entries[column.key].values) < self.num_finished

    def text(self, column: Column) -> str:
        """Mean ± spread, with the number of seeds in brackets where not all have the metric."""
        entry = self.entries[column.key]
        if entry.mean is None:
            return "-"
        text = f"{entry.mean:.{column.decimals}f}"
        if entry.spread is not None:
            text += f" ± {entry.spread:.{column.decimals}f}"
        return f"{text} ({len(entry.values)})" if self.is_short(column) else text

    def seeds_text(self) -> str:
        """Finished seeds, and others by their state."""
        states, done = list(self.states.values()), self.num_finished
        text = str(done) if done == len(states) else f"{done} of {len(states)}"
        bad = [f"{n} {s}" for s in ("failed", "stale") if (n := states.count(s))]
        return f"{text} ({', '.join(bad)})" if bad else text


def rows_of(table: Table, runs: Sequence[Run]) -> list[Row]:
    """Variants that have runs; only finished runs give values."""
    rows = []
    for variant in table.variants:
        own = [run for run in runs if run.variant.name == variant.name]
        if not own:
            continue
        states = {run.seed: run.state for run in own}
        results = [run.read() for run in own if states[run.seed] == "finished"]
        metrics = {result["seed"]: result["metrics"] for result in results if result is not None}
        entries = {column.key: _entry(metrics, column.key) for column in table.columns}
        rows.append(Row(variant.name, variant.label, entries, states))
    return rows


def _entry(metrics: Mapping[int, Mapping[str, float | None]], key: str) -> Entry:
    known = {seed: value for seed, of in metrics.items() if (value := of.get(key)) is not None}
    return Entry(tuple(known.values()), tuple(known))


def changes(row: Row, base: Row, column: Column) -> Entry:
    """Per cent by which a metric differs from that of another row, for every seed that both have.

    Values are compared seed by seed: one seed gives both rows the same labels. A value of zero in
    the other row has no percentage.
    """
    own, theirs = (
        dict(zip(entry.seeds, entry.values, strict=True))
        for entry in (row.entries[column.key], base.entries[column.key])
    )
    shared = {s: 100 * (v / theirs[s] - 1) for s, v in own.items() if theirs.get(s)}
    return Entry(tuple(shared.values()), tuple(shared))


def best_rows(rows: Sequence[Row], column: Column) -> set[str]:
    """Rows with the best mean as it is shown, of those with the most values."""
    entries = {row.name: row.entries[column.key] for row in rows}
    most = max((len(entry.values) for entry in entries.values()), default=0)
    means = {
        name: round(entry.mean, column.decimals)
        for name, entry in entries.items()
        if entry.mean is not None and len(entry.values) == most
    }
    if column.better is None or len(means) < 2:
        return set()
    best = min(means.values()) if column.better == "lower" else max(means.values())
    return {name for name, mean in means.items() if mean == best}


def used_columns(table: Table, rows: Sequence[Row]) -> list[Column]:
    """Columns with a value in any row, or all while there is none."""
    used = [c for c in table.columns if any(row.entries[c.key].values for row in rows)]
    return used or list(table.columns)


def baseline_of(table: Table, rows: Sequence[Row]) -> Row | None:
    """The row that others are compared with, if it has runs."""
    return next((row for row in rows if row.name == table.baseline), None)


def as_csv(table: Table, rows: Sequence[Row]) -> str:
    """A row per variant: name, label, finished seeds, then mean, spread and values by column.

    A table with a baseline also has the mean change from it, in per cent (`:change`).
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    base = baseline_of(table, rows)
    parts = ("", ":sd", ":values", *((":change",) if table.baseline is not None else ()))
    heads = [f"{c.key}{part}" for c in table.columns for part in parts]
    writer.writerow(["variant", "label", "seeds", *heads])
    for row in rows:
        fields: list[Any] = []
        for column in table.columns:
            entry = row.entries[column.key]
            values = " ".join(f"{v:.6g}" for v in entry.values)
            fields += [_csv_number(entry.mean), _csv_number(entry.spread), values]
            if table.baseline is not None:
                change = None if base is None else changes(row, base, column).mean
                fields.append(_csv_number(change))
        writer.writerow([row.name, row.label, row.num_finished, *fields])
    return out.getvalue()


def _csv_number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def as_markdown(table: Table, rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """The table with its question, how to read it, and which code and machines made it.

    `runs` are the finished ones.
    """
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
    base = baseline_of(table, rows)
    shown = [c for c in columns if c.better is not None]
    others = [row for row in rows if row is not base]
    if base is None or not any(changes(row, base, c).values for row in others for c in shown):
        return ""
    lines = [[row.label, *(_change_text(changes(row, base, c)) for c in shown)] for row in others]
    return (
        f"## Against {base.label}\n\n{markdown_table(['', *(c.label for c in shown)], lines)}\n\n"
        f"Per cent of the metric of {base.label}, mean ± sample standard deviation of the changes "
        "of single seeds, over the seeds that both rows have. Where lower is better, a minus is a "
        "gain.\n\n"
    )


def _change_text(entry: Entry) -> str:
    if entry.mean is None:
        return "-"
    return f"{entry.mean:+.1f} %" + (f" ± {entry.spread:.1f}" if entry.spread is not None else "")


def _provenance(runs: Sequence[Run]) -> str:
    """Commits, machines and threads behind the numbers, and runs with other defaults."""
    results = [result for run in runs if (result := run.read()) is not None]
    if not results:
        return "No run is finished yet."
    stages = [stage for result in results for stage in result["stages"].values()]
    commits = [c for stage in stages for c in stage.get("commits") or [stage]]
    shas = sorted({(c["git_sha"] or "no git")[:10] + "+" * bool(c["git_dirty"]) for c in commits})
    threads = sorted({str(s["threads"]) for s in stages})
    machines = sorted({f"{r['machine']}, torch {r['torch']}" for r in results})
    text = (
        f"{len(results)} runs; code {', '.join(shas)} (+ = with local changes); "
        f"{'; '.join(machines)}; {' or '.join(threads)} thread(s) per run."
    )
    outdated: dict[str, list[str]] = {}
    for run in runs:
        if run.is_outdated:
            outdated.setdefault(run.variant.label, []).append(str(run.seed))
    if not outdated:
        return text
    names = "; ".join(
        f"{label} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
        for label, seeds in outdated.items()
    )
    return (
        f"{text} Made under other defaults in configs/ than today's, or by an older version "
        f"(overwrite=true makes them again): {names}."
    )
