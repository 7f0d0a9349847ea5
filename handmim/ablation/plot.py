"""Dot plots of a table: a panel per figure, a line per variant, every seed a dot."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from handmim.ablation.canvas import (
    GREY,
    LIGHT,
    Canvas,
    axis_range,
    axis_ticks,
    mean_bar,
    text_width,
)

Series = Mapping[str, Mapping[str, Sequence[float]]]  # panel -> variant -> values of its seeds

ROW_PX, PANEL_PX, TITLE_PX, HEAD_PX, BOTTOM_PX, MARGIN_PX = 24, 230, 32, 28, 34, 14
PER_LINE = 4  # panels
DOT, BAR = (31, 111, 180), (209, 98, 43)


def dot_plot(title: str, series: Series) -> NDArray[np.uint8]:
    """Draw; panels do not start at zero.

    Args:
        title: above everything.
        series: panels in order; all have the same variants, in order.
    Returns: [H, W, 3] BGR picture, as cv2 writes it.
    """
    variants = list(dict.fromkeys(name for panel in series.values() for name in panel))
    names_px = max([text_width(name) for name in variants], default=0) + 2 * MARGIN_PX
    line_px = HEAD_PX + ROW_PX * len(variants) + BOTTOM_PX
    num_lines = math.ceil(len(series) / PER_LINE)
    width = max(names_px + min(len(series), PER_LINE) * PANEL_PX, text_width(title, 1.3) + names_px)
    canvas = Canvas(width, TITLE_PX + line_px * num_lines)
    canvas.text(MARGIN_PX, 20, title, scale=1.3)
    for j, (label, panel) in enumerate(series.items()):
        top = TITLE_PX + line_px * (j // PER_LINE) + HEAD_PX
        if j % PER_LINE == 0:
            for i, name in enumerate(variants):
                y = top + ROW_PX * (i + 0.5) + 4
                canvas.text(names_px - MARGIN_PX - text_width(name), y, name)
        values = [panel.get(name, ()) for name in variants]
        _draw_panel(canvas, names_px + (j % PER_LINE) * PANEL_PX, top, label, values)
    return canvas.finished()[:, :, ::-1]


def _draw_panel(
    canvas: Canvas, left: float, top: float, label: str, values: Sequence[Sequence[float]]
) -> None:
    right, bottom = left + PANEL_PX - 2 * MARGIN_PX, top + ROW_PX * len(values)
    canvas.text(left, top - 10, label, scale=min(1.0, (right - left) / text_width(label)))
    for i in range(len(values)):
        y = top + ROW_PX * (i + 0.5)
        canvas.line((left, y), (right, y), LIGHT, 1)
    bars = [mean_bar(row) for row in values]
    everything = [v for row in (*values, *bars) for v in row]
    if not everything:
        return
    low, high = axis_range(everything)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    canvas.line((left, bottom), (right, bottom), GREY, 1)
    for tick in axis_ticks(low, high):
        canvas.line((place(tick), bottom), (place(tick), bottom + 4), GREY, 1)
        words = f"{tick:.6g}"
        canvas.text(place(tick) - text_width(words, 0.85) / 2, bottom + 17, words, GREY, 0.85)
    for i, (row, bar) in enumerate(zip(values, bars, strict=True)):
        y = top + ROW_PX * (i + 0.5)
        if bar:
            canvas.line((place(bar[0]), y), (place(bar[2]), y), BAR, 1.5)
            canvas.line((place(bar[1]), y - 7), (place(bar[1]), y + 7), BAR, 2)
        for value in row:
            canvas.dot(place(value), y, 3, DOT)
