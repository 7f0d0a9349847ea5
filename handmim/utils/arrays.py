"""Arrays kept as .npy files: whole, of the expected shape and type, and without pickles.

A file ends in the trailer of `checksums`, which numpy's own reader passes over.
"""

import math
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from handmim.utils.checksums import CheckedWriter, has_trailer
from handmim.utils.files import atomic_path, remove_leftovers

# What numpy's reader raises, the last four from inside Python's parser.
BAD_HEADER = (ValueError, EOFError, SyntaxError, TokenError, RecursionError, MemoryError)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array and its CRC-32, whole or not at all.

    Raises: OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, name=path.name)
    with atomic_path(path) as partial, CheckedWriter(partial) as file:
        np.save(file, array, allow_pickle=False)  # type: ignore[call-overload]


def check_array(path: Path) -> None:
    """Compare a file of `save_array` with its CRC-32: half a second per gigabyte.

    Raises: ValueError for another content or none; FileNotFoundError.
    """
    if not has_trailer(path):
        raise ValueError(f"{path} is damaged: its checksum is missing at its end")


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
