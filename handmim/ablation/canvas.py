"""What plots of tables are drawn on: plain pixels, smooth lines and letters, round ticks."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Point = tuple[float, float]

SHARP = 3  # drawn so much larger, then averaged down: smooth lines and letters
FONT, LETTER = cv2.FONT_HERSHEY_SIMPLEX, 0.42
INK, GREY, LIGHT = (38, 33, 29), (150, 143, 138), (230, 225, 221)  # RGB


class Canvas:
    """A picture in plain pixels, drawn at SHARP times the size."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height * SHARP, width * SHARP, 3), 255, np.uint8)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        return round(x * SHARP), round(y * SHARP)

    def line(self, a: Point, b: Point, colour: Colour, px: float) -> None:
        """From a to b."""
        cv2.line(self.pixels, self._at(*a), self._at(*b), colour, round(px * SHARP), cv2.LINE_AA)

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled disc."""
        cv2.circle(self.pixels, self._at(x, y), round(radius * SHARP), colour, -1, cv2.LINE_AA)

    def area(self, corners: Sequence[Point], colour: Colour, opacity: float) -> None:
        """A filled polygon that what lies below shows through."""
        filled = self.pixels.copy()
        cv2.fillPoly(filled, [np.array([self._at(*c) for c in corners])], colour, cv2.LINE_AA)
        self.pixels = cv2.addWeighted(filled, opacity, self.pixels, 1 - opacity, 0)

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


def text_width(words: str, scale: float = 1.0) -> int:
    """Of words as they are drawn."""
    size = LETTER * scale * SHARP
    return math.ceil(cv2.getTextSize(_plain(words), FONT, size, SHARP)[0][0] / SHARP)


def axis_range(values: Sequence[float]) -> tuple[float, float]:
    """Of an axis: the values with a little air."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - air, high + air


def mean_bar(values: Sequence[float]) -> tuple[float, ...]:
    """Mean - spread, mean, mean + spread; nothing for fewer than two values."""
    if len(values) < 2:
        return ()
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    return mean - spread, mean, mean + spread


def axis_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two ends."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= about)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]
