"""Image files to RGB: JPEGs quickly and, for a small crop, at a smaller scale, by libjpeg-turbo
where simplejpeg is installed, with the pixels of OpenCV; others by `handmim.images.formats`."""

import os
import stat
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

from handmim.images.formats import (
    DAMAGED,
    ORIENTATION,
    check_size,
    decoded,
    format_of,
    printable,
    tiff_tag,
)
from handmim.utils.files import UnreadableSample, foreign_kind

ImageArray = NDArray[np.uint8]  # [H, W, 3] RGB

FITS = ("contain", "cover")
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
MAX_MEGAPIXELS = 200.0
BYTES_PER_PIXEL = 16  # four floats: no image file needs more, apart from its head
HEAD_BYTES = 1 << 16
SIZE_BYTES = 1 << 12  # read for an image's size; the whole file where more comes before it
NUM_THREADS = 8
MAX_ASPECT = 64  # a longer image is cut to this before it is scaled to its shorter side
_APP1, _SCAN = 0xE1, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class UnreadableImage(UnreadableSample):
    """An image that cannot be read: its file, and the reason."""

    def __str__(self) -> str:
        return f"{printable(self.path)} cannot be read: {self.reason}" if self.reason else self.path


def jpeg_head(raw: bytes) -> tuple[int, int, int] | None:
    """Height, width and EXIF orientation (1 = as it is) in a JPEG's head; None for anything that is
    no JPEG or is broken before its pixels begin."""
    orientation, at = 1, 2
    with suppress(struct.error, IndexError, ValueError):
        while raw[:2] == b"\xff\xd8":
            at = raw.index(b"\xff", at)
            marker = raw[at + 1]
            if marker in (0x00, 0xFF):  # filling, or other bytes between segments
                at += 1
                continue
            if marker == _SCAN:
                break
            (length,) = struct.unpack_from(">H", raw, at + 2)
            content = raw[at + 4 : at + 2 + length]
            if marker == _APP1 and content[:6] == b"Exif\0\0":
                orientation = tiff_tag(content[6:], ORIENTATION) or 1
            elif marker in _FRAMES:
                height, width = struct.unpack(">HH", content[1:5])
                return (height, width, orientation) if height and width else None
            at += 2 + length
    return None


def reduction(height: int, width: int, side: int | None, fit: str) -> int:
    """Largest of 8, 4, 2, 1 by which an image may shrink while decoded and still be scaled down,
    not up, to `side`; 1 for None."""
    if side is None:
        return 1
    length = max(height, width) if fit == "contain" else min(height, width)
    return next(by for by in (8, 4, 2, 1) if -(-length // by) >= side or by == 1)


def decode_image(
    raw: bytes,
    name: str | Path,
    side: int | None = None,
    fit: str = "contain",
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> ImageArray:
    """Pixels [H, W, 3] uint8 of an image file of any format, EXIF rotation applied.

    `side` and `fit` are those of the square crop that will be made of it (`crops.square`); None
    gives all pixels. Raises: UnreadableImage, also for more than `max_megapixels`.
    """
    kind = format_of(raw)
    try:
        if kind is None:
            foreign = foreign_kind(raw)
            raise ValueError(f"it {foreign}" if foreign else DAMAGED)
        if kind != "JPEG":
            return decoded(raw, kind, max_megapixels)
        head = jpeg_head(raw)
        if head is None:
            raise ValueError(DAMAGED)
        check_size(*head[:2], max_megapixels)
        return _jpeg(raw, head, reduction(*head[:2], side, fit))
    except ValueError as error:
        raise UnreadableImage(name, str(error)) from error


def _jpeg(raw: bytes, head: tuple[int, int, int], by: int) -> ImageArray:
    if simplejpeg is not None and head[2] == 1:
        height, width = (-(-side // by) if by > 1 else 0 for side in head[:2])
        with suppress(ValueError):  # CMYK, cut short: OpenCV decodes as much as it can
            return simplejpeg.decode_jpeg(raw, "RGB", min_height=height, min_width=width)
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), REDUCED[by])
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # an error for None
    except cv2.error as error:
        raise ValueError(DAMAGED) from error


def read_image(
    path: str | Path,
    side: int | None = None,
    fit: str = "contain",
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> ImageArray:
    """`decode_image` of a file; FIFOs, devices and links to them are never opened."""
    raw = read_bytes(path, max_megapixels)
    return decode_image(raw, path, side, fit, max_megapixels=max_megapixels)


def read_bytes(path: str | Path, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
    """An image file's content; the rest of a file that does not begin as an image is left unread.

    Raises: UnreadableImage for no regular file, or a larger one than `max_megapixels` can have.
    """
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise UnreadableImage(path, "it is no regular file")
        with open(path, "rb", buffering=0) as file:
            raw = file.read(HEAD_BYTES)
            if format_of(raw) is None or facts.st_size <= len(raw):
                return raw
            check_file_size(facts.st_size, max_megapixels, path)
            return raw + file.readall()
    except UnreadableImage:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UnreadableImage(path, getattr(error, "strerror", None) or str(error)) from error


def check_file_size(size: int, max_megapixels: float, name: str | Path) -> None:
    """Raises: UnreadableImage for more bytes than an image of `max_megapixels` can have."""
    if size > max_megapixels * 1e6 * BYTES_PER_PIXEL + HEAD_BYTES:
        text = f"the file of {size / 2**30:.1f} GiB is larger than any image may be"
        raise UnreadableImage(name, f"{text} (max_megapixels)")


def not_too_long(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The centre of an image whose longer side is above `MAX_ASPECT` times the shorter."""
    height, width = image.shape[:2]
    most = MAX_ASPECT * min(height, width)
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    return image[top : top + most, left : left + most]


def image_head(path: Path) -> tuple[int, int, int] | None:
    """Stored width, height and EXIF orientation (1 = as stored); None where a file has none."""
    try:
        if not path.is_file():  # opening a pipe would wait forever
            return None
        with path.open("rb") as file:
            head = jpeg_head(file.read(SIZE_BYTES))
        if head is not None:
            return head[1], head[0], head[2]
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of its size: only the head is read
            return image.width, image.height, int(image.getexif().get(ORIENTATION, 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def image_heads(paths: Sequence[Path]) -> NDArray[np.int64]:
    """[n, 3] of `image_head`, zeros where there is none."""
    heads = np.zeros((len(paths), 3), np.int64)

    def read(start: int) -> None:
        for i in range(start, len(paths), NUM_THREADS):
            heads[i] = image_head(paths[i]) or 0

    with ThreadPoolExecutor(NUM_THREADS) as pool:  # network folders answer slowly
        list(pool.map(read, range(NUM_THREADS)))
    return heads
