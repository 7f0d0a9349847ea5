"""What a dataset holds, as one digest: it stays when files move and differs for other files.

Names and sizes count for every file, content for some at even distances, so that a large set costs
a fraction of a second. Every dataset has `fingerprint() -> str`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

READ = 64  # files, or rows of an array, whose content counts
READ_BYTES = 1 << 16  # of each file


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 of texts and bytes, each told from the next, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def some(num: int) -> list[int]:
    """Indices at even distances of a sequence of `num`."""
    return sorted({round(i) for i in np.linspace(0, num - 1, min(num, READ))})


def files_digest(root: Path, names: Sequence[str], *, with_sizes: bool = True) -> str:
    """Digest of files below a folder, whatever the folder is called.

    Args:
        root: the folder.
        names: relative to it; one that is missing counts as such.
        with_sizes: sizes of all files count, which asks the file system for each.
    """
    parts: list[str | bytes] = []
    for name in names:
        parts += [name, str(_size(root / name)) if with_sizes else ""]
    return digest_of(*parts, *(_head(root / names[i]) for i in some(len(names))))


def copies(root: Path, names: Sequence[str]) -> tuple[int, int]:
    """How many of some files are copies of others of them, and how many were looked at."""
    contents = [(_size(root / names[i]), _head(root / names[i])) for i in some(len(names))]
    return len(contents) - len(set(contents)), len(contents)


def arrays_digest(arrays: Iterable[Any]) -> str:
    """Digest of arrays [n, ...] by their shapes and some rows."""
    parts: list[str | bytes] = []
    for array in arrays:
        rows = np.stack([np.asarray(array[i]) for i in some(len(array))])
        parts += [f"{len(array)} {rows.dtype} {rows.shape}", rows.tobytes()]
    return digest_of(*parts)


def fingerprint_of(dataset: Dataset[Any]) -> str | None:
    """Fingerprint of a dataset, of the whole one for a subset; None where it has none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    own = getattr(dataset, "fingerprint", None)
    return None if own is None else own()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe would never answer
            return b""
        with path.open("rb") as file:
            return file.read(READ_BYTES)
    except OSError:
        return b""
