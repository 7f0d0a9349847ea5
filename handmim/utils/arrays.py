"""Arrays kept as .npy files: whole, of the expected shape and type, and without pickles.

A file ends with a CRC-32 of everything before it, which numpy's own reader passes over.
"""

import math
import os
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

PIECE_BYTES = 1 << 22
CRC_DIGITS = 8
# What numpy's reader raises, the last four from inside Python's parser.
BAD_HEADER = (ValueError, EOFError, SyntaxError, TokenError, RecursionError, MemoryError)
TRAILER = b"crc32:"
TRAILER_BYTES = len(TRAILER) + CRC_DIGITS


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array and its CRC-32, whole or not at all.

    Raises: OSError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w+b") as file:
            np.save(file, array, allow_pickle=False)
            size = file.tell()
            file.seek(0)
            crc = _crc_of(file, size)
            file.seek(size)
            file.write(TRAILER + crc)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_array(path: Path) -> None:
    """Compare a file of `save_array` with its CRC-32: a second per gigabyte.

    Raises: ValueError for another content or none; FileNotFoundError.
    """
    size = path.stat().st_size - TRAILER_BYTES
    with path.open("rb") as file:
        crc = _crc_of(file, size)
        trailer = file.read()
    if size < 0 or trailer != TRAILER + crc:
        raise ValueError(f"{path} has another content than was written to it")


def open_array(path: Path, item_shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap[Any, Any]:
    """Memory map of a .npy file; its header is believed only as far as the file reaches.

    Args:
        path: file in C order.
        item_shape: shape behind the first axis.
        dtype: of the numbers.
    Returns: [n, *item_shape], read only.
    Raises: FileNotFoundError; ValueError for a file that is empty, cut off or no .npy, or holds
        another shape or type.
    """
    size = path.stat().st_size
    wanted = f"an array of shape (n, {', '.join(map(str, item_shape))}) and type {np.dtype(dtype)}"
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            shape, is_fortran, found = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
    except BAD_HEADER as error:
        reason = "is empty" if size == 0 else f"has no header of a .npy file ({error})"
        raise ValueError(f"{path} {reason}: {wanted} is required") from error
    if not shape or shape[1:] != item_shape or found != np.dtype(dtype) or is_fortran:
        raise ValueError(f"{path} holds shape {shape} and type {found}: {wanted} is required")
    num_bytes = offset + math.prod(shape) * found.itemsize
    if size < num_bytes:
        raise ValueError(f"{path} is cut off: {size} of {num_bytes} bytes")
    return np.memmap(path, found, "r", offset, shape)


def _crc_of(file: Any, num_bytes: int) -> bytes:
    crc = 0
    while num_bytes > 0 and (piece := file.read(min(PIECE_BYTES, num_bytes))):
        crc = zlib.crc32(piece, crc)
        num_bytes -= len(piece)
    return b"%08x" % crc
