"""Finished cells as the lines of a table: figures by row and column, over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from handmim.ablation.plan import Cell
from handmim.ablation.table import Column, Table


class Entry(NamedTuple):
    """One place of the table: the figure of every finished seed that has it."""

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


class Line(NamedTuple):
    """One row of the table."""

    name: str
    label: str
    entries: dict[str, Entry]  # by column key
    states: dict[int, str]  # by seed

    @property
    def num_finished(self) -> int:
        """Seeds that count."""
        return list(self.states.values()).count("finished")

    def is_short(self, column: Column) -> bool:
        """Whether some of its finished seeds, not all, have this figure."""
        return 0 < len(self.entries[column.key].values) < self.num_finished


def lines_of(table: Table, cells: Sequence[Cell]) -> list[Line]:
    """Rows that have cells, as far as these are finished; stale and failed ones do not count."""
    lines = []
    for row in table.rows:
        mine = [cell for cell in cells if cell.row.name == row.name]
        if not mine:
            continue
        states = {cell.seed: cell.state for cell in mine}
        done = [cell.read() for cell in mine if states[cell.seed] == "finished"]
        figures = {content["seed"]: content["figures"] for content in done if content is not None}
        entries = {c.key: _entry(figures, c.key) for c in table.columns}
        lines.append(Line(row.name, row.label, entries, states))
    return lines


def _entry(figures: Mapping[int, Mapping[str, float | None]], key: str) -> Entry:
    known = {seed: value for seed, of in figures.items() if (value := of.get(key)) is not None}
    return Entry(tuple(known.values()), tuple(known))


def changes(line: Line, base: Line, column: Column) -> Entry:
    """Per cent by which a figure differs from that of another row, for every seed that both have.

    Values are compared seed by seed: one seed gives both rows the same labels. A figure of the
    other row that is zero has no share to differ by.
    """
    mine, theirs = (
        dict(zip(entry.seeds, entry.values, strict=True))
        for entry in (line.entries[column.key], base.entries[column.key])
    )
    shared = {s: 100 * (v / theirs[s] - 1) for s, v in mine.items() if theirs.get(s)}
    return Entry(tuple(shared.values()), tuple(shared))


def best_rows(lines: Sequence[Line], column: Column) -> set[str]:
    """Rows with the best mean as it is shown, of those with the most values."""
    entries = {line.name: line.entries[column.key] for line in lines}
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


def used_columns(table: Table, lines: Sequence[Line]) -> list[Column]:
    """Columns of which any row has a figure, or all while there is none."""
    used = [c for c in table.columns if any(line.entries[c.key].values for line in lines)]
    return used or list(table.columns)
