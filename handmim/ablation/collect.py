"""Finished cells to the files of a table: Markdown, CSV, JSON and plots."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.ablation.curves import curve_plot, curves_of
from handmim.ablation.files import json_text
from handmim.ablation.lines import Line, changes, lines_of, used_columns
from handmim.ablation.markdown import facts_of, markdown
from handmim.ablation.plan import Plan
from handmim.ablation.plot import dot_plot
from handmim.ablation.publish import CURVE
from handmim.ablation.table import Table
from handmim.utils.files import atomic_path, write_atomic


def as_csv(table: Table, lines: Sequence[Line]) -> str:
    """A row per variant: name, label, finished seeds, then mean, spread and values by column.

    A table with a baseline also has the mean change against it, in per cent (`:change`).
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    base = next((line for line in lines if line.name == table.baseline), None)
    parts = ("", ":sd", ":values", *((":change",) if table.baseline is not None else ()))
    heads = [f"{c.key}{part}" for c in table.columns for part in parts]
    writer.writerow(["row", "label", "seeds", *heads])
    for line in lines:
        fields: list[Any] = []
        for column in table.columns:
            entry = line.entries[column.key]
            values = " ".join(f"{v:.6g}" for v in entry.values)
            fields += [_csv_number(entry.mean), _csv_number(entry.spread), values]
            if table.baseline is not None:
                change = None if base is None else changes(line, base, column).mean
                fields.append(_csv_number(change))
        writer.writerow([line.name, line.label, line.num_finished, *fields])
    return out.getvalue()


def _csv_number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def collect(plan: Plan) -> list[Line]:
    """Write the table as it stands now.

    Its folder takes table.md, table.csv, plot.png, curve.png where the table asks for curves, and
    cells.json (everything known of every finished cell).

    Args:
        plan: of the table.
    Returns: the lines.
    """
    table, folder, cells = plan.table, plan.folder, plan.shown()
    folder.mkdir(parents=True, exist_ok=True)
    lines = lines_of(table, cells)
    finished = [cell for cell in cells if cell.state == "finished"]
    contents = [content for cell in finished if (content := cell.read()) is not None]
    write_atomic(folder / "table.md", markdown(table, lines, facts_of(finished)))
    write_atomic(folder / "table.csv", as_csv(table, lines))
    write_atomic(folder / "cells.json", json_text(contents))
    series = {
        c.label: {line.label: line.entries[c.key].values for line in lines}
        for c in used_columns(table, lines)
        if c.better is not None
    }
    _write_picture(folder / "plot.png", dot_plot(table.title, series))
    if table.curves:
        curves = curves_of(table, finished)
        _write_picture(folder / CURVE, curve_plot(table.title, curves))
    return lines


def _write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    with atomic_path(path) as partial:
        partial.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())
