"""Curves of a table: error against the number of labels, a panel per figure, a line per row."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.ablation.canvas import (
    GREY,
    LIGHT,
    Canvas,
    Colour,
    Point,
    axis_range,
    axis_ticks,
    mean_bar,
    text_width,
)
from handmim.ablation.plan import Cell
from handmim.ablation.table import Table, fraction_name

PLOT_W_PX, PLOT_H_PX, GAP_PX, LEFT_PX = 300, 230, 30, 52
TITLE_PX, LEGEND_PX, HEAD_PX, BOTTOM_PX, MARGIN_PX, SMALL = 34, 22, 30, 46, 14, 0.85
PER_LINE = 4  # panels
BAND_OPACITY = 0.16
AXIS = "labels (log scale)"
READING = "dots: seeds; bands: mean ± sample sd"
# RGB, told apart with any kind of sight; rows beyond them begin anew
COLOURS: tuple[Colour, ...] = (
    (110, 104, 100), (209, 98, 43), (31, 111, 180), (46, 139, 87), (165, 80, 160),
    (200, 160, 0), (90, 180, 215), (150, 40, 60), (60, 60, 140), (120, 90, 50),
)  # fmt: skip


class Spot(NamedTuple):
    """What the seeds of a row reach with one number of labels."""

    num_labels: float
    values: tuple[float, ...]


Place = Callable[[float, float], Point]  # (number of labels, value) -> x, y
Curves = Mapping[str, Mapping[str, Sequence[Spot]]]  # panel -> row -> spots by number of labels


def curves_of(table: Table, cells: Sequence[Cell]) -> dict[str, dict[str, list[Spot]]]:
    """The curves that a table asks for, as far as its cells have the figures.

    Args:
        table: its `curves` are the panels; one that no cell has a figure for is left out.
        cells: that are finished.
    """
    read = [(cell.row.name, content) for cell in cells if (content := cell.read()) is not None]
    figures = [(name, content["figures"]) for name, content in read]
    panels: dict[str, dict[str, list[Spot]]] = {}
    for figure, label in table.curves:
        panel = {}
        for row in table.rows:
            mine = [found for name, found in figures if name == row.name]
            spots = [_spot(mine, fraction_name(f), figure) for f in table.fractions]
            panel[row.label] = sorted(spot for spot in spots if spot is not None)
        if any(panel.values()):
            panels[label] = panel
    return panels


def _spot(cells: Sequence[Mapping[str, float | None]], stage: str, figure: str) -> Spot | None:
    pairs = [(cell.get(f"{stage}/num_labels"), cell.get(f"{stage}/{figure}")) for cell in cells]
    known = [(num, value) for num, value in pairs if num is not None and value is not None]
    if not known:
        return None
    return Spot(statistics.fmean(n for n, _ in known), tuple(value for _, value in known))


def curve_plot(title: str, curves: Curves) -> NDArray[np.uint8]:
    """Draw; lines join means, dots are seeds, bands mean ± sample standard deviation.

    Args:
        title: above everything.
        curves: panels in order, named with their unit; all have the same rows, in order.
    Returns: [H, W, 3] BGR picture, as cv2 writes it.
    """
    rows = list(dict.fromkeys(row for panel in curves.values() for row in panel))
    colours = {row: COLOURS[i % len(COLOURS)] for i, row in enumerate(rows)}
    panel_px, line_px = LEFT_PX + PLOT_W_PX + GAP_PX, HEAD_PX + PLOT_H_PX + BOTTOM_PX
    reading_px = MARGIN_PX + text_width(title, 1.3) + GAP_PX
    whole_px = reading_px + text_width(READING, SMALL) + MARGIN_PX
    width = max(min(len(curves), PER_LINE) * panel_px, whole_px)
    legend = _placed(rows, width)
    top = TITLE_PX + LEGEND_PX * (1 + max((y for _, y in legend.values()), default=0))
    canvas = Canvas(width, top + line_px * math.ceil(len(curves) / PER_LINE))
    canvas.text(MARGIN_PX, 22, title, scale=1.3)
    canvas.text(reading_px, 22, READING, GREY, SMALL)
    for row, (x, line) in legend.items():
        y = TITLE_PX + LEGEND_PX * line + 10
        canvas.line((x, y), (x + 18, y), colours[row], 2)
        canvas.dot(x + 9, y, 3, colours[row])
        canvas.text(x + 24, y + 4, row)
    for j, (label, panel) in enumerate(curves.items()):
        left = LEFT_PX + panel_px * (j % PER_LINE)
        _draw_panel(canvas, left, top + line_px * (j // PER_LINE) + HEAD_PX, label, panel, colours)
    return canvas.finished()[:, :, ::-1]


def _placed(rows: Sequence[str], width: int) -> dict[str, tuple[float, int]]:
    """Where the rows stand in the legend: x and line, as many to a line as fit."""
    placed: dict[str, tuple[float, int]] = {}
    x, line = float(MARGIN_PX), 0
    for row in rows:
        length = 24 + text_width(row) + 22
        if x > MARGIN_PX and x + length > width:
            x, line = float(MARGIN_PX), line + 1
        placed[row] = x, line
        x += length
    return placed


def _draw_panel(
    canvas: Canvas,
    left: float,
    top: float,
    label: str,
    panel: Mapping[str, Sequence[Spot]],
    colours: Mapping[str, Colour],
) -> None:
    right, bottom = left + PLOT_W_PX, top + PLOT_H_PX
    scale = min(1.0, (right - left) / text_width(label))
    canvas.text(left, top - 10, label, scale=scale)
    spots = [spot for row in panel.values() for spot in row]
    if not spots:
        return
    nums = sorted({spot.num_labels for spot in spots})
    low, high = axis_range([v for s in spots for v in (*s.values, *mean_bar(s.values))])
    first, last = axis_range([math.log10(num) for num in nums])

    def place(num: float, value: float) -> Point:
        x = left + (math.log10(num) - first) / (last - first) * PLOT_W_PX
        return x, bottom - (value - low) / (high - low) * PLOT_H_PX

    for tick in axis_ticks(low, high, 6):
        y = place(nums[0], tick)[1]
        canvas.line((left, y), (right, y), LIGHT, 1)
        words = f"{tick:.6g}"
        canvas.text(left - 6 - text_width(words, SMALL), y + 4, words, GREY, SMALL)
    free = left - MARGIN_PX
    for num in nums:
        x, words = place(num, low)[0], f"{num:.6g}"
        canvas.line((x, bottom), (x, bottom + 4), GREY, 1)
        half = text_width(words, SMALL) / 2
        if x - half > free:
            canvas.text(x - half, bottom + 17, words, GREY, SMALL)
            free = x + half + 4
    canvas.line((left, top), (left, bottom), GREY, 1)
    canvas.line((left, bottom), (right, bottom), GREY, 1)
    middle = (left + right - text_width(AXIS, SMALL)) / 2
    canvas.text(middle, bottom + 35, AXIS, GREY, SMALL)
    for row in panel:
        _draw_band(canvas, panel[row], place, colours[row])
    for row in panel:
        _draw_row(canvas, panel[row], place, colours[row])


def _draw_band(canvas: Canvas, spots: Sequence[Spot], place: Place, colour: Colour) -> None:
    """Between neighbouring numbers of labels that both have a spread."""
    bars = [(spot.num_labels, mean_bar(spot.values)) for spot in spots]
    for (num, bar), (next_num, next_bar) in pairwise(bars):
        if bar and next_bar:
            lower = place(num, bar[0]), place(next_num, next_bar[0])
            upper = place(next_num, next_bar[2]), place(num, bar[2])
            canvas.area([*lower, *upper], colour, BAND_OPACITY)


def _draw_row(canvas: Canvas, spots: Sequence[Spot], place: Place, colour: Colour) -> None:
    means = [place(spot.num_labels, statistics.fmean(spot.values)) for spot in spots]
    for a, b in pairwise(means):
        canvas.line(a, b, colour, 2)
    for spot in spots:
        for value in spot.values:
            canvas.dot(*place(spot.num_labels, value), 3, colour)
