"""Finished cells to one table: mean and spread over seeds, as Markdown, CSV, JSON and a plot."""

import csv
import io
import json
import math
import re
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from handmim.ablation.plan import Cell
from handmim.ablation.plot import dot_plot
from handmim.ablation.table import Column, Table
from handmim.utils.run import write_atomic

FILES = ("table.md", "table.csv", "plot.png", "cells.json")


class Entry(NamedTuple):
    """One place of the table: the figure of every finished seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """None where nothing is finished."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None for fewer than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class Line(NamedTuple):
    """One row of the table."""

    name: str
    label: str
    entries: dict[str, Entry]  # by column key
    states: dict[int, str]  # by seed


def lines_of(table: Table, cells: Sequence[Cell]) -> list[Line]:
    """The table's rows as far as their cells are finished; stale and failed ones do not count."""
    lines = []
    for row in table.rows:
        mine = [cell for cell in cells if cell.row.name == row.name]
        states = {cell.seed: cell.state for cell in mine}
        done = [cell.read() for cell in mine if states[cell.seed] == "finished"]
        figures = [content["figures"] for content in done if content is not None]
        entries = {
            c.key: Entry(tuple(f[c.key] for f in figures if math.isfinite(f.get(c.key, math.nan))))
            for c in table.columns
        }
        lines.append(Line(row.name, row.label, entries, states))
    return lines


def shown(entry: Entry, column: Column) -> str:
    """Mean and spread in one place; a dash where there is nothing."""
    if entry.mean is None:
        return "-"
    text = f"{entry.mean:.{column.decimals}f}"
    return text if entry.spread is None else f"{text} ± {entry.spread:.{column.decimals}f}"


def best_rows(lines: Sequence[Line], column: Column) -> set[str]:
    """Rows with the best mean as it is shown."""
    means = {
        line.name: round(mean, column.decimals)
        for line in lines
        if (mean := line.entries[column.key].mean) is not None
    }
    if column.better is None or len(means) < 2:
        return set()
    best = min(means.values()) if column.better == "lower" else max(means.values())
    return {name for name, mean in means.items() if mean == best}


def used_columns(table: Table, lines: Sequence[Line]) -> list[Column]:
    """Columns of which any row has a figure, or all while there is none."""
    used = [c for c in table.columns if any(line.entries[c.key].values for line in lines)]
    return used or list(table.columns)


def markdown(table: Table, lines: Sequence[Line], facts: str) -> str:
    """The table with what it asks, how to read it, and where it comes from."""
    columns = used_columns(table, lines)
    best = {c.key: best_rows(lines, c) for c in columns}
    rows = [["", "seeds", *(c.label for c in columns)]]
    rows.append(["---", *("---:" for _ in rows[0][1:])])
    for line in lines:
        cells = [shown(line.entries[c.key], c) for c in columns]
        cells = [
            f"**{text}**" if line.name in best[c.key] else text
            for text, c in zip(cells, columns, strict=True)
        ]
        rows.append([line.label, _seeds_text(line), *cells])
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    higher = ", ".join(c.label for c in columns if c.better == "higher")
    reading = "Lower is better" + f", except for {higher}" * bool(higher)
    return (
        f"# {table.title}\n\n{table.question}\n\n{body}\n\n"
        "Mean ± sample standard deviation over seeds (a seed is its own pretraining, choice of "
        "labels and fine-tuning); bold is the best mean, which a spread of the same size may "
        f"contradict. {reading}.\n\n{facts}\n"
    )


def _seeds_text(line: Line) -> str:
    done = sum(state == "finished" for state in line.states.values())
    text = str(done) if done == len(line.states) else f"{done} of {len(line.states)}"
    bad = [f"{n} {s}" for s in ("failed", "stale") if (n := list(line.states.values()).count(s))]
    return f"{text} ({', '.join(bad)})" if bad else text


def facts_of(contents: Sequence[dict[str, Any]], num_outdated: int) -> str:
    """Where the figures come from, in a sentence or two."""
    if not contents:
        return "No cell is finished yet."
    stages = [stage for content in contents for stage in content["stages"].values()]
    shas = sorted({(s["git_sha"] or "no git")[:10] + "+" * bool(s["git_dirty"]) for s in stages})
    threads = sorted({str(s["threads"]) for s in stages})
    machines = sorted({f"{c['machine']}, torch {c['torch']}" for c in contents})
    return (
        f"{len(contents)} cells; code {', '.join(shas)} (+ = with local changes); "
        f"{'; '.join(machines)}; {' or '.join(threads)} thread(s) per cell."
        + f" {num_outdated} of them were made under other defaults in configs/ than today's "
        "(overwrite=true makes them again)." * bool(num_outdated)
    )


def as_csv(table: Table, lines: Sequence[Line]) -> str:
    """A row per variant: name, label, finished seeds, then mean, spread and values by column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{c.key}{part}" for c in table.columns for part in ("", ":sd", ":values")]
    writer.writerow(["row", "label", "seeds", *heads])
    for line in lines:
        fields: list[Any] = []
        for column in table.columns:
            entry = line.entries[column.key]
            values = " ".join(f"{v:.6g}" for v in entry.values)
            fields += [_csv_number(entry.mean), _csv_number(entry.spread), values]
        done = sum(state == "finished" for state in line.states.values())
        writer.writerow([line.name, line.label, done, *fields])
    return out.getvalue()


def _csv_number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def collect(table: Table, cells: Sequence[Cell], folder: Path) -> list[Line]:
    """Write the table as it stands now.

    Args:
        table: rows and columns.
        cells: of the plan.
        folder: takes table.md, table.csv, plot.png and cells.json (everything known of every
            finished cell).
    Returns: the lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = lines_of(table, cells)
    finished = [cell for cell in cells if cell.state == "finished"]
    contents = [content for cell in finished if (content := cell.read()) is not None]
    facts = facts_of(contents, sum(cell.is_outdated for cell in finished))
    write_atomic(folder / "table.md", markdown(table, lines, facts))
    write_atomic(folder / "table.csv", as_csv(table, lines))
    write_atomic(folder / "cells.json", json.dumps(contents, indent=1) + "\n")
    series = {
        c.label: {line.label: line.entries[c.key].values for line in lines}
        for c in used_columns(table, lines)
        if c.better is not None
    }
    partial = folder / ".plot.png"
    cv2.imwrite(str(partial), dot_plot(table.title, series))
    partial.replace(folder / "plot.png")
    return lines


def publish(name: str, folder: Path, out: Path) -> list[Path]:
    """Copy a table's files, named after the table and without this machine's paths, into a folder
    of several.

    Args:
        name: of the table.
        folder: its own.
        out: takes <name>.md, .csv, .png and .json.
    """
    out.mkdir(parents=True, exist_ok=True)
    targets = [out / f"{name}{Path(file).suffix}" for file in FILES]
    for file, target in zip(FILES, targets, strict=True):
        if target.suffix == ".json":
            write_atomic(target, without_places((folder / file).read_text()))
        else:
            shutil.copyfile(folder / file, target)
    return targets


def without_places(text: str) -> str:
    """Cells as others may read them: absolute paths keep their last part, hosts go."""
    text = re.sub(r"""(?<=['"=])/(?:[^/'"\s]+/)+""", ".../", text)
    return re.sub(r"""\n *"host": "[^"]*",?""", "", text)
