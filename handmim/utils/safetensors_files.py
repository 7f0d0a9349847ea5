"""Files of safetensors with a digest of their own bytes, which every reader may check.

The metadata's `sha256` is the digest of the whole file with zeros in the digest's place.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from safetensors.torch import save_file
from torch import Tensor

from handmim.utils.files import atomic_path

DIGEST, CHECKED = "sha256", "checked_by"  # the second says that the first has to be there
ZEROS = b"0" * 64
LENGTH_BYTES = 8  # before the header
MAX_HEADER = 100_000_000  # the format's own bound
CHUNK = 1 << 20


def save_weights(weights: Mapping[str, Tensor], path: Path, meta: Mapping[str, str]) -> None:
    """Write tensors whole or not at all, with a digest in the metadata.

    Args:
        weights: by name.
        path: file to write.
        meta: further metadata.
    Raises: OSError for a full disk, with the bytes that are needed and free; ValueError for weights
        that are not finite.
    """
    bad = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(
            f"{path} was not written: {len(bad)} weights, {bad[0]} first, are not finite"
        )
    with atomic_path(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        filled = {**meta, CHECKED: DIGEST, DIGEST: ZEROS.decode()}
        save_file(dict(weights), partial, metadata=filled)
        partial.chmod(mode)  # safetensors lets nobody but the owner read, whatever the umask
        with partial.open("rb+") as file:
            place = _place(_header(file), ZEROS)
            digest = _digest(file, place)
            file.seek(place)
            file.write(digest)


def check_weights(path: Path) -> None:
    """Compare a file of `save_weights` with its digest; files of others have none.

    Raises: ValueError for another content than was written.
    """
    with path.open("rb") as file:
        header = _header(file)
        try:
            meta = json.loads(header)["__metadata__"]
            said = meta.get(DIGEST), meta.get(CHECKED)
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            return  # no file of ours, and the reader says what it is
        if said == (None, None):
            return
        written = str(said[0]).encode()
        if len(written) != len(ZEROS) or _digest(file, _place(header, written)) != written:
            raise ValueError(f"{path} is damaged: its content is not what was written")


def _header(file: BinaryIO) -> bytes:
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    return file.read(min(length, MAX_HEADER))


def _place(header: bytes, digest: bytes) -> int:
    """Where the digest lies in the file."""
    return LENGTH_BYTES + header.find(digest)


def _digest(file: BinaryIO, place: int) -> bytes:
    """SHA-256 of a file, in hex, with zeros at `place`."""
    file.seek(0)
    found = hashlib.sha256(file.read(place) + ZEROS)
    file.seek(place + len(ZEROS))
    while piece := file.read(CHUNK):
        found.update(piece)
    return found.hexdigest().encode()
