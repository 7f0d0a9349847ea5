"""Nested lists of numbers in JSON files as arrays, parsed once.

FreiHAND's vertices are 1.5 GB of text: Python lists of them would take several times that. Here the
text is read in pieces and the numbers go straight into an array, which is kept as .npy in a cache
folder and read back by memory map.
"""

import hashlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.utils.arrays import check_array, open_array, save_array
from handmim.utils.json_numbers import parse_numbers

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 23
# White space and brackets around one number: nothing that writes such lists makes as many.
LONGEST_NUMBER_BYTES, MAX_BRACKETS_PER_NUMBER = 1 << 24, 16
BETWEEN_NUMBERS = b"[], \n\r\t"


class StoredArray:
    """An array on disk, read by memory map; other processes get its path, not its content.

    Args:
        path: .npy file.
        item_shape: shape behind the first axis.
        dtype: of the numbers.
    """

    def __init__(self, path: Path, item_shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.item_shape, self.dtype = path, item_shape, dtype
        self._map: NDArray[np.floating] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}

    @property
    def values(self) -> NDArray[np.floating]:
        """The memory map.

        Raises: ValueError when the file has been damaged meanwhile.
        """
        if self._map is None:
            self._map = open_array(self.path, self.item_shape, self.dtype)
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
    Raises: FileNotFoundError; ValueError when something else than numbers is found, when their
        count is no multiple of an entry's, or when brackets outnumber them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    pieces, rest, num_brackets = [], b"", 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        if not file.read().rstrip().endswith(b"]"):
            raise ValueError(f"{path.name} does not end like a JSON list: cut off or another file")
        file.seek(0)
        while True:
            block = file.read(PIECE_BYTES)
            num_brackets += block.count(b"[")
            text = rest + block
            if block:  # a number may go on in the next piece
                cut = text.rfind(b",") + 1
                text, rest = text[:cut], text[cut:]
                if len(rest) > LONGEST_NUMBER_BYTES:
                    raise ValueError(
                        f"{path.name} is not a JSON list of numbers: {len(rest) / 1e6:.0f} MB "
                        "without a comma"
                    )
            if text.strip(BETWEEN_NUMBERS):
                pieces.append(_numbers(text.rstrip(BETWEEN_NUMBERS), path))
            if not block:
                break
    numbers = np.concatenate(pieces) if pieces else np.zeros(0)
    if num_brackets > MAX_BRACKETS_PER_NUMBER * (len(numbers) + 1):
        raise ValueError(
            f"{path.name} is not a JSON list of numbers: {num_brackets} opening brackets and "
            f"{len(numbers)} numbers"
        )
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

    A converted array that is damaged, or lacks its CRC-32, is converted anew.

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
    stored = StoredArray(target, item_shape, dtype)
    if target.is_file():
        try:
            check_array(target)
            len(stored)  # opens it
            return stored
        except ValueError as error:
            log.warning("%s; converted anew from %s", error, path)
    log.info("converting %s (%.0f MB) once", path.name, path.stat().st_size / 1e6)
    values = read_number_lists(path, item_shape).astype(dtype)
    try:
        save_array(target, values)
    except OSError as error:
        error.add_note(f"while writing the cache {target} (data.cache_dir)")
        raise
    return stored
