"""The protocol of a dataset's layout, what all layouts share, and a tree of unlabeled crops."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.utils.files import atomic_path
from synthesis.scenes import SceneSource

Labels = dict[str, NDArray[Any]]
JPEG_QUALITY = 95
NUM_FOLDERS = 4  # of a tree of crops
METRE_DIGITS = 8  # of coordinates in JSON files: 10 nanometres


class Layout(Protocol):
    """Files of one dataset, made item by item."""

    counts: Mapping[str, int]  # items of each part of the set, numbered from 0
    images_per_item: Mapping[str, int]
    side_multiple: int  # scene.image_px must be one of this

    def files(self) -> Iterator[str]:
        """Every file below the root, relative to it."""
        ...

    def write(self, source: SceneSource, root: Path, part: str, index: int) -> Labels:
        """Write what is particular to an item; return the labels that go into lists."""
        ...

    def assemble(self, root: Path, blocks: Callable[[str], Iterator[Labels]], temp: Path) -> None:
        """Write the lists, from the labels of a part's items in blocks of consecutive ones."""
        ...


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB image as jpg or png, the same bytes every time.

    Raises: OSError when the disk does not recording it.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    ok, data = cv2.imencode(path.suffix, image[:, :, ::-1], options)
    if not ok:
        raise OSError(f"{path} could not be encoded")
    path.write_bytes(data.tobytes())


def write_text(path: Path, pieces: Iterable[str], temp: Path) -> None:
    """Write a text file that appears whole or not at all; `temp` is a folder of the same disk."""
    with atomic_path(path, beside=temp, sync=False) as partial, partial.open("w") as file:
        file.writelines(pieces)


def json_list(values: Iterable[NDArray[Any]], digits: int | None = None) -> Iterator[str]:
    """A JSON list of arrays as nested lists, in pieces, one entry at a time.

    Args:
        values: entries.
        digits: decimals that are kept; None keeps all.
    """
    yield "["
    for i, value in enumerate(values):
        kept = np.asarray(value, np.float64)
        kept = kept if digits is None else np.round(kept, digits)
        yield ("," if i else "") + json.dumps(kept.tolist())
    yield "]"


def entries(blocks: Iterator[Labels], name: str) -> Iterator[NDArray[Any]]:
    """One label of all items, in spec."""
    for block in blocks:
        yield from block[name]


def needs_items(num: int, num_eval: int, most: int, name: str) -> None:
    """Raises: ValueError when a dataset of both parts cannot have so many items."""
    for key, value in {"num": num, "num_eval": num_eval}.items():
        if not 1 <= value <= most:
            raise ValueError(f"{key} must be 1 to {most} for format={name}, got {value}")


class FolderLayout:
    """Crops dealt out to a few subfolders.

    Args:
        num: images.
        num_eval: 0: there is nothing to evaluate on.
    """

    side_multiple = 1

    def __init__(self, num: int, num_eval: int) -> None:
        if not 1 <= num < 10**8:
            raise ValueError(f"num must be 1 to {10**8 - 1} for format=folder, got {num}")
        if num_eval:
            raise ValueError(f"format=folder has no evaluation part, got num_eval={num_eval}")
        self.counts = {"crops": num}
        self.images_per_item = {"crops": 1}

    @staticmethod
    def _file(index: int) -> str:
        return f"set_{index % NUM_FOLDERS}/{index:08d}.jpg"

    def files(self) -> Iterator[str]:
        """Every file below the root, relative to it."""
        return (self._file(i) for i in range(self.counts["crops"]))

    def write(self, source: SceneSource, root: Path, part: str, index: int) -> Labels:
        """One crop."""
        write_image(root / self._file(index), source.renderer("train").render(index).image)
        return {}

    def assemble(self, root: Path, blocks: Callable[[str], Iterator[Labels]], temp: Path) -> None:
        """Nothing to write: there are no labels."""
