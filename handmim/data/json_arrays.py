"""Nested lists of numbers in JSON files as arrays, parsed once.

FreiHAND's vertices are 1.5 GB of text: Python lists of them would take several times that. Here the
text is read in pieces and the numbers go straight into an array, which is kept as .npy in a cache
folder and read back by memory map.
"""

import hashlib
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.utils.json_numbers import parse_numbers

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 25
BETWEEN_NUMBERS = b"[], \n\r\t"


class StoredArray:
    """An array on disk, read by memory map; other processes get its path, not its content.

    Args:
        path: .npy file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: NDArray[np.floating] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_map": None}

    @property
    def values(self) -> NDArray[np.floating]:
        """The memory map."""
        if self._map is None:
            self._map = np.load(self.path, mmap_mode="r")
        return self._map

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> NDArray[np.float64]:
        return np.asarray(self.values[index], np.float64)


def read_number_lists(path: Path, item_shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A JSON list of equally nested lists of numbers.

    Args:
        path: file.
        item_shape: shape of one entry, () for plain numbers.
    Returns: [n, *item_shape]. The nesting inside an entry is not looked at, only its count of
        numbers.
    Raises: FileNotFoundError; ValueError when something else than numbers is found, or their count
        is no multiple of an entry's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    pieces, rest = [], b""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        if not file.read().rstrip().endswith(b"]"):
            raise ValueError(f"{path.name} does not end like a JSON list: cut off or another file")
        file.seek(0)
        while True:
            block = file.read(PIECE_BYTES)
            text = rest + block
            if block:  # a number may go on in the next piece
                cut = text.rfind(b",") + 1
                text, rest = text[:cut], text[cut:]
            if text.strip(BETWEEN_NUMBERS):
                pieces.append(_numbers(text.rstrip(BETWEEN_NUMBERS), path))
            if not block:
                break
    numbers = np.concatenate(pieces) if pieces else np.zeros(0)
    per_item = math.prod(item_shape)
    if len(numbers) % per_item:
        raise ValueError(
            f"{path.name} holds {len(numbers)} numbers, wanted a multiple of {per_item} "
            f"({'x'.join(map(str, item_shape))} per sample): damaged or another file"
        )
    return numbers.reshape(-1, *item_shape)


def _numbers(text: bytes, path: Path) -> NDArray[np.float64]:
    try:
        return parse_numbers(text)
    except ValueError as error:
        raise ValueError(f"{path.name} is not a JSON list of numbers: {error}") from error


def cached_number_lists(
    path: Path, item_shape: tuple[int, ...], cache_dir: Path, dtype: str = "float32"
) -> StoredArray:
    """`read_number_lists` as an array on disk, converted when the file is new or changed.

    Args:
        path: JSON file.
        item_shape: shape of one entry.
        cache_dir: whose folder labels/ keeps the converted array.
        dtype: of the stored numbers; scores want float64.
    Raises: FileNotFoundError; ValueError for other content; OSError when the cache cannot be
        written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    facts: list[Any] = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    digest = hashlib.sha256(repr([*facts, item_shape, dtype]).encode()).hexdigest()
    target = cache_dir / "labels" / f"{path.stem}-{digest[:12]}.npy"
    if not target.is_file():
        log.info("converting %s (%.0f MB) once", path.name, path.stat().st_size / 1e6)
        values = read_number_lists(path, item_shape).astype(dtype)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, values)
            partial.replace(target)
        except OSError as error:
            error.add_note(f"while writing the cache {target} (data.cache_dir)")
            raise
        finally:
            partial.unlink(missing_ok=True)
    return StoredArray(target)
