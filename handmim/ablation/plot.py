"""Dot plots of a table: a panel per figure, a line per variant, every seed a dot."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Series = Mapping[str, Mapping[str, Sequence[float]]]  # panel -> variant -> values of its seeds

SHARP = 3  # drawn so much larger, then averaged down: smooth lines and letters
ROW_PX, PANEL_PX, TITLE_PX, HEAD_PX, BOTTOM_PX, MARGIN_PX = 24, 230, 32, 28, 34, 14
PER_LINE = 4  # panels
FONT, LETTER = cv2.FONT_HERSHEY_SIMPLEX, 0.42
INK, GREY, LIGHT = (38, 33, 29), (150, 143, 138), (230, 225, 221)  # RGB
DOT, BAR = (31, 111, 180), (209, 98, 43)


class _Canvas:
    """A picture in plain pixels, drawn at SHARP times the size."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height * SHARP, width * SHARP, 3), 255, np.uint8)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        return round(x * SHARP), round(y * SHARP)

    def line(
        self, a: tuple[float, float], b: tuple[float, float], colour: Colour, px: float
    ) -> None:
        """From a to b."""
        cv2.line(self.pixels, self._at(*a), self._at(*b), colour, round(px * SHARP), cv2.LINE_AA)

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled disc."""
        cv2.circle(self.pixels, self._at(x, y), round(radius * SHARP), colour, -1, cv2.LINE_AA)

    def text(
        self, x: float, y: float, words: str, colour: Colour = INK, scale: float = 1.0
    ) -> None:
        """Words from x on, standing on y."""
        size = LETTER * scale * SHARP
        cv2.putText(
            self.pixels, _plain(words), self._at(x, y), FONT, size, colour, SHARP, cv2.LINE_AA
        )

    def finished(self) -> NDArray[np.uint8]:
        """[H, W, 3] RGB."""
        height, width = self.pixels.shape[:2]
        size = (width // SHARP, height // SHARP)
        return cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA)


def _plain(words: str) -> str:
    """The font has ASCII only."""
    return words.replace("±", "+-").encode("ascii", "replace").decode()


def _width(words: str, scale: float = 1.0) -> int:
    """Of words as they are drawn."""
    size = LETTER * scale * SHARP
    return math.ceil(cv2.getTextSize(_plain(words), FONT, size, SHARP)[0][0] / SHARP)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Of an axis: the values with a little air."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - air, high + air


def dot_plot(title: str, series: Series) -> NDArray[np.uint8]:
    """Draw; panels do not start at zero.

    Args:
        title: above everything.
        series: panels in order; all have the same variants, in order.
    Returns: [H, W, 3] BGR picture, as cv2 writes it.
    """
    variants = list(dict.fromkeys(name for panel in series.values() for name in panel))
    names_px = max([_width(name) for name in variants], default=0) + 2 * MARGIN_PX
    line_px = HEAD_PX + ROW_PX * len(variants) + BOTTOM_PX
    num_lines = math.ceil(len(series) / PER_LINE)
    width = max(names_px + min(len(series), PER_LINE) * PANEL_PX, _width(title, 1.3) + names_px)
    canvas = _Canvas(width, TITLE_PX + line_px * num_lines)
    canvas.text(MARGIN_PX, 20, title, scale=1.3)
    for j, (label, panel) in enumerate(series.items()):
        top = TITLE_PX + line_px * (j // PER_LINE) + HEAD_PX
        if j % PER_LINE == 0:
            for i, name in enumerate(variants):
                y = top + ROW_PX * (i + 0.5) + 4
                canvas.text(names_px - MARGIN_PX - _width(name), y, name)
        values = [panel.get(name, ()) for name in variants]
        _draw_panel(canvas, names_px + (j % PER_LINE) * PANEL_PX, top, label, values)
    return canvas.finished()[:, :, ::-1]


def _draw_panel(
    canvas: _Canvas, left: float, top: float, label: str, values: Sequence[Sequence[float]]
) -> None:
    right, bottom = left + PANEL_PX - 2 * MARGIN_PX, top + ROW_PX * len(values)
    canvas.text(left, top - 10, label, scale=min(1.0, (right - left) / _width(label)))
    for i in range(len(values)):
        y = top + ROW_PX * (i + 0.5)
        canvas.line((left, y), (right, y), LIGHT, 1)
    bars = [_bar(row) for row in values]
    everything = [v for row in (*values, *bars) for v in row]
    if not everything:
        return
    low, high = _range(everything)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    canvas.line((left, bottom), (right, bottom), GREY, 1)
    for tick in _ticks(low, high):
        canvas.line((place(tick), bottom), (place(tick), bottom + 4), GREY, 1)
        words = f"{tick:.6g}"
        canvas.text(place(tick) - _width(words, 0.85) / 2, bottom + 17, words, GREY, 0.85)
    for i, (row, bar) in enumerate(zip(values, bars, strict=True)):
        y = top + ROW_PX * (i + 0.5)
        if bar:
            canvas.line((place(bar[0]), y), (place(bar[2]), y), BAR, 1.5)
            canvas.line((place(bar[1]), y - 7), (place(bar[1]), y + 7), BAR, 2)
        for value in row:
            canvas.dot(place(value), y, 3, DOT)


def _bar(values: Sequence[float]) -> tuple[float, ...]:
    """Mean - spread, mean, mean + spread; nothing for fewer than two values."""
    if len(values) < 2:
        return ()
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    return mean - spread, mean, mean + spread


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two ends."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= about)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]
