"""Picture files to RGB: JPEGs quickly and, where a smaller picture is all that is wanted, at a
smaller scale; anything else as OpenCV reads it.

JPEGs go through libjpeg-turbo where simplejpeg is installed (pip install handmim[fast]), which is
quicker than OpenCV and gives the same pixels: results do not depend on what is installed.
"""

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # [H, W, 3] RGB

FITS = ("contain", "cover")
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_ORIENTATION = 0x0112
_APP1, _SCAN = 0xE1, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class UnreadableImage(ValueError):
    """An image that cannot be read.

    Args:
        path: file, or file and entry in it.
        reason: why. Empty where `path` is the whole message: torch raises an error of a loader
            process again from one string.
    """

    def __init__(self, path: str | Path, reason: str = "") -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.reason}" if self.reason else self.path


@cache
def turbo() -> ModuleType | None:
    """simplejpeg, None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


class JpegHead(NamedTuple):
    """What a JPEG's head says."""

    height: int
    width: int
    orientation: int  # of EXIF, 1 = as it is


def jpeg_head(raw: bytes) -> JpegHead | None:
    """None for anything that is no JPEG or is broken before its pixels begin."""
    orientation = 1
    try:
        for marker, content in _segments(raw):
            if marker == _APP1 and content[:6] == b"Exif\0\0":
                orientation = _orientation(content[6:])
            elif marker in _FRAMES:
                height, width = struct.unpack(">HH", content[1:5])
                return JpegHead(height, width, orientation) if height and width else None
    except (struct.error, IndexError):
        pass
    return None


def _segments(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and what follows them, up to the pixels."""
    if raw[:2] != b"\xff\xd8":
        return
    at = 2
    while raw[at] == 0xFF:
        marker = raw[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker == _SCAN:
            return
        (length,) = struct.unpack_from(">H", raw, at + 2)
        yield marker, raw[at + 4 : at + 2 + length]
        at += 2 + length


def _orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    (num,) = struct.unpack_from(f"{order}H", tiff, first)
    for entry in range(num):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, first + 2 + 12 * entry)
        if tag == _ORIENTATION:
            return int(value)
    return 1


def reduction(height: int, width: int, side: int | None, fit: str) -> int:
    """Largest of 8, 4, 2, 1 by which a picture may shrink while decoded and still be scaled down,
    not up, to `side`; None wants all of it."""
    if side is None:
        return 1
    length = max(height, width) if fit == "contain" else min(height, width)
    return next(by for by in (8, 4, 2, 1) if -(-length // by) >= side or by == 1)


def decode_rgb(raw: bytes, side: int | None = None, fit: str = "contain") -> Picture | None:
    """A picture file's pixels with EXIF rotation applied, whatever it holds.

    Args:
        raw: content of the file.
        side: of the square crop that will be made of it; None gives all pixels there are.
        fit: how (`crops.square`): the longer ("contain") or shorter side ("cover") counts.
    Returns: [H, W, 3] uint8, None when unreadable.
    """
    head = jpeg_head(raw)
    by = 1 if head is None else reduction(head.height, head.width, side, fit)
    codec = turbo()
    if codec is not None and head is not None and head.orientation in (0, 1):
        try:
            return codec.decode_jpeg(
                raw,
                "RGB",
                min_height=-(-head.height // by) if by > 1 else 0,
                min_width=-(-head.width // by) if by > 1 else 0,
            )
        except ValueError:  # CMYK, cut short: OpenCV makes of it what it can
            pass
    if not raw:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), REDUCED[by])
    except cv2.error:
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_rgb(path: Path, side: int | None = None, fit: str = "contain") -> Picture | None:
    """`decode_rgb` of a file; None when it is not there either."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    return decode_rgb(raw, side, fit)
