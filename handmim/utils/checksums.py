"""Checksums of files that this project writes: a changed or missing byte is refused, not used.

A binary file ends in a trailer with the CRC-32 and the number of all bytes before it. CRC-32 finds
every change of up to 32 bits in a row and others but for one in 4e9; it is the quickest checksum of
Python's library (2.2 GB/s where SHA-256 has 1.1). JSON carries it in a field of its own.
"""

import contextlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from handmim.utils.files import is_full

TRAILER = struct.Struct("<12sIQ")  # magic, CRC-32, bytes before the trailer
CHECKED = "checked_by"  # key of a checkpoint that has to have a trailer
MAGIC = b"\nHMchecked1\n"
FIELD = "crc32"
CHUNK = 1 << 20


class FullDiskError(OSError):
    """A disk has no room for a file.

    Attributes:
        needed: bytes of the whole file.
    """

    needed: int


class CheckedWriter:
    """A binary file to write to, in order, whose context ends with a trailer.

    Args:
        path: of the file, made anew.
    Raises: FullDiskError at the end of the context.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self._crc = self._size = 0
        self._full: OSError | None = None

    def write(self, data: Any) -> int:
        """Append bytes; on a full disk, the rest of the file is only counted."""
        size = memoryview(data).nbytes
        self._put(data)
        self._crc = zlib.crc32(data, self._crc)
        self._size += size
        return size

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._put(b"", flush=True)

    def _put(self, data: Any, *, flush: bool = False) -> None:
        if self._full is not None:
            return
        try:
            self.file.write(data)
            if flush:
                self.file.flush()
        except OSError as error:
            if not is_full(error):
                raise
            self._full = error

    def __enter__(self) -> "CheckedWriter":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._put(TRAILER.pack(MAGIC, self._crc, self._size), flush=True)
        with contextlib.suppress(OSError) if self._full else contextlib.nullcontext():
            self.file.close()
        if kind is None and self._full is not None:
            full = FullDiskError(self._full.errno, self._full.strerror)
            full.needed = self._size + TRAILER.size
            raise full


def has_trailer(path: Path) -> bool:
    """Whether a file ends in the trailer of its own content.

    Returns: False for a file without a trailer.
    Raises: ValueError for a file whose content differs from its trailer.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2) - TRAILER.size
        if size < 0:
            return False
        file.seek(size)
        magic, crc, length = TRAILER.unpack(file.read())
        if magic != MAGIC:
            return False
        file.seek(0)
        if length != size or crc32_of(file, size) != crc:
            raise ValueError(f"{path} is damaged: its content is not what was written")
    return True


def crc32_of(file: BinaryIO, size: int) -> int:
    """CRC-32 of the next `size` bytes of a file."""
    crc, buffer = 0, memoryview(bytearray(min(size, CHUNK)))
    while size > 0:
        count = file.readinto(buffer[: min(size, CHUNK)])  # type: ignore[attr-defined]
        if not count:
            break
        crc, size = zlib.crc32(buffer[:count], crc), size - count
    return crc


def _crc_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def with_crc(content: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready content with its checksum as a last field."""
    return {**content, FIELD: _crc_of(content)}


def without_crc(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Content of `with_crc` as it was; content without a checksum is returned as it is.

    Args:
        content: as read.
        name: of its source, for the message.
    Raises: ValueError where it is not what was written.
    """
    rest = {key: value for key, value in content.items() if key != FIELD}
    if FIELD in content and content[FIELD] != _crc_of(rest):
        raise ValueError(f"{name} is damaged: its content is not what was written")
    return rest
