"""Files whose changed or missing bytes are refused: a CRC-32 in a trailer of binary files or in a
field of JSON (2.2 GB/s where SHA-256 has 1.1)."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from handmim.utils.files import DAMAGE, FULL, FullDiskError, atomic_path, remove_leftovers

TRAILER = struct.Struct("<12sIQ")  # magic, CRC-32, bytes before the trailer
CHECKED = "checked_by"  # key of a checkpoint that has to have a trailer
MAGIC = b"\nHMchecked1\n"
FIELD = "crc32"
CHUNK = 1 << 20


class CheckedWriter:
    """A new binary file, written in order, whose context ends with a trailer.

    On a full disk the rest is counted for the FullDiskError at the end: torch.save reports a failed
    write as a fault of its own.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.crc = self.size = 0
        self.full: OSError | None = None

    def write(self, data: Any) -> int:
        """Append bytes."""
        size = memoryview(data).nbytes
        self._unless_full(self.file.write, data)
        self.crc = zlib.crc32(data, self.crc)
        self.size += size
        return size

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._unless_full(self.file.flush)

    def _unless_full(self, action: Callable[..., object], *args: Any) -> None:
        try:
            if self.full is None:
                action(*args)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.full = error

    def __enter__(self) -> "CheckedWriter":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._unless_full(self.file.write, TRAILER.pack(MAGIC, self.crc, self.size))
            self.flush()
        try:
            self.file.close()
        except OSError:
            if self.full is None:
                raise
        if kind is None and self.full is not None:
            raise FullDiskError(self.full, self.size + TRAILER.size)


def has_trailer(path: Path) -> bool:
    """Whether a file ends in the trailer of its own content; ValueError for that of another."""
    with path.open("rb") as file:
        size = file.seek(0, 2) - TRAILER.size
        if size < 0:
            return False
        file.seek(size)
        magic, crc, length = TRAILER.unpack(file.read())
        if magic != MAGIC:
            return False
        file.seek(0)
        found, left = 0, size
        while piece := file.read(min(left, CHUNK)):
            found, left = zlib.crc32(piece, found), left - len(piece)
        if (length, crc) != (size, found):
            raise ValueError(f"{path} is damaged: its content is not what was written")
    return True


def with_crc(content: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready content with its checksum as a last field."""
    return {**content, FIELD: _crc_of(content)}


def without_crc(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Content of `with_crc`, or without a checksum, as it was; ValueError naming its source where
    it is not what was written."""
    rest = {key: value for key, value in content.items() if key != FIELD}
    if FIELD in content and content[FIELD] != _crc_of(rest):
        raise ValueError(f"{name} is damaged: its content is not what was written")
    return rest


def _crc_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file and its trailer, which numpy's reader passes over; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, name=path.name)
    with atomic_path(path) as partial, CheckedWriter(partial) as file:
        np.save(file, array, allow_pickle=False)  # type: ignore[call-overload]


def check_array(path: Path) -> None:
    """Compare a file of `save_array` with its trailer, half a second per gigabyte; ValueError for
    another content or none."""
    if not has_trailer(path):
        raise ValueError(f"{path} is damaged: its checksum is missing at its end")


def open_array(path: Path, item_shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap[Any, Any]:
    """Memory map [n, *item_shape], read only, of a .npy file in C order.

    Raises: ValueError for a file that is empty, cut off or no .npy, or holds another shape or type.
    """
    shape = ", ".join(map(str, ("n", *item_shape)))
    required = f"an array of shape ({shape}) and type {np.dtype(dtype)} is required"
    try:
        with np.errstate(over="raise"):  # in the size of an endless array
            array = np.lib.format.open_memmap(path, "r")
    except (*DAMAGE, MemoryError) as error:
        raise ValueError(f"{path} is cut off or no .npy file ({error}): {required}") from error
    is_fit = array.ndim == 1 + len(item_shape) and array.shape[1:] == item_shape
    if not is_fit or array.dtype != np.dtype(dtype) or not array.flags.c_contiguous:
        raise ValueError(f"{path} holds shape {array.shape} and type {array.dtype}: {required}")
    return array
