"""Sizes of image files, read from their first bytes."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handmim.images.decode import jpeg_head

HEAD_BYTES = 1 << 12  # the whole file is looked at where more comes before the size
EXIF_ORIENTATION = 0x0112
NUM_THREADS = 8


def image_head(path: Path) -> tuple[int, int, int] | None:
    """Stored width and height, before any rotation, and EXIF orientation (1 = as stored).

    Returns: None where the file is no image, or its size is not in its head.
    """
    try:
        if not path.is_file():  # a pipe would never answer
            return None
        with path.open("rb") as file:
            head = jpeg_head(file.read(HEAD_BYTES))
        if head is not None:
            return head.width, head.height, head.orientation
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of its size: only the head is read
            return image.width, image.height, int(image.getexif().get(EXIF_ORIENTATION, 1))
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
