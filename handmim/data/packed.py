"""Unlabeled crops in one file, read in any order: no folder to walk, no large photos to decode.

The file, numbers little-endian; `handmim.data.packing` writes it:

    64 bytes     magic, version, 0, start and length of the index, SHA-256 of the index
    ...          images one after the other: JPEG files, or raw RGB rows
    index        JSON: image_px, coding, ids, ends (position after each image), crc32 of each

A file that was cut short, or is another, is refused when it is opened; an image that changed on
disk when it is read.
"""

import hashlib
import json
import mmap
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data.crops import check_grouping, group_of
from handmim.data.datasets import digest_of
from handmim.images.decode import UnreadableImage, decode_image
from handmim.types import CropSample

MAGIC, VERSION = b"HMcrops\n", 1
HEAD = struct.Struct("<8sIIQQ32s")
CODINGS = ("jpeg", "raw")
WRITTEN_BY = "(data.root=FILE, written by tools/pack_crops.py)"


def packed_head(start: int, index: bytes) -> bytes:
    """The first bytes of a file whose index lies at `start`."""
    return HEAD.pack(MAGIC, VERSION, 0, start, len(index), hashlib.sha256(index).digest())


class PackedWriter:
    """Write crops one after the other, and the index last.

    Args:
        file: empty.
        image_px, coding: of the crops.
    """

    def __init__(self, file: BinaryIO, image_px: int, coding: str) -> None:
        self.file, self.facts = file, {"image_px": image_px, "coding": coding}
        self.ids, self.ends, self.crcs = list[str](), list[int](), list[int]()
        file.write(bytes(HEAD.size))

    def add(self, sample_id: str, image: bytes, metadata: Mapping[str, Any] | None = None) -> None:
        """Write one image; metadata has no room in this format."""
        self.file.write(image)
        self.ids.append(sample_id)
        self.ends.append(self.file.tell())
        self.crcs.append(zlib.crc32(image))

    def close(self) -> None:
        """Write the index."""
        facts = {**self.facts, "ids": self.ids, "ends": self.ends, "crc32": self.crcs}
        index = json.dumps(facts, separators=(",", ":")).encode()
        start = self.file.tell()
        self.file.write(index)
        self.file.seek(0)
        self.file.write(packed_head(start, index))


def read_index(path: Path) -> dict[str, Any]:
    """The index of a file.

    Raises: ValueError for anything but a complete file of packed crops.
    """
    if not path.is_file():
        is_folder = f"{path} is a folder: data=folder, or pack it first"
        raise ValueError(f"{is_folder if path.is_dir() else f'no file {path}'} {WRITTEN_BY}")
    with path.open("rb") as file:
        head = file.read(HEAD.size)
        if head[: len(MAGIC)] != MAGIC or len(head) < HEAD.size:
            raise ValueError(f"{path} holds no packed crops {WRITTEN_BY}")
        _, version, _, start, length, digest = HEAD.unpack(head)
        if version != VERSION:
            raise ValueError(
                f"{path} is of version {version}, this program reads {VERSION}: write it again "
                "(tools/pack_crops.py)"
            )
        size = path.stat().st_size
        file.seek(min(start, size))
        index = file.read() if size == start + length else b""
    if size != start + length or hashlib.sha256(index).digest() != digest:
        raise ValueError(
            f"{path} is damaged: {size} bytes and another index than its head states "
            f"({start + length} bytes); copy it again"
        )
    return json.loads(index)


class PackedCrops(Dataset[CropSample]):
    """The crops of a packed file, in its order.

    Args:
        root: the file.
        group_by: "folder" when images of one folder show nearly the same hand (frames of a video),
            so that they are no negatives of each other; "none" otherwise.
    Raises: ValueError for a file that is no packed crops, or is damaged.
    """

    def __init__(self, root: str | Path, *, group_by: str = "none") -> None:
        check_grouping(group_by)
        self.root, self.group_by = Path(root), group_by
        index = read_index(self.root)
        self.image_px, self.coding = int(index["image_px"]), str(index["coding"])
        self.names: list[str] = index["ids"]
        self._ends = np.array([HEAD.size, *index["ends"]], np.int64)
        self._crc32 = np.array(index["crc32"], np.uint32)
        self._map: mmap.mmap | None = None

    def fingerprint(self) -> str:
        """Digest of names and content, wherever the file lies."""
        index = self._ends.tobytes(), self._crc32.tobytes()
        return digest_of(str(self.image_px), self.coding, *self.names, *index)

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}  # every process opens its own

    def stored(self, index: int) -> bytes:
        """An image as it is stored.

        Raises: UnreadableImage where it is not what was written.
        """
        if self._map is None:
            with self.root.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = self._map[self._ends[index] : self._ends[index + 1]]
        if zlib.crc32(content) != self._crc32[index]:
            raise UnreadableImage(
                f"{self.root}: {self.names[index]}",
                "it is not what was written, the file is damaged: copy it again",
            )
        return content

    def __getitem__(self, index: int) -> CropSample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        name = self.names[index]
        image = self._decode(self.stored(index), name)
        return CropSample(image, sample_id=name, group=group_of(name, self.group_by))

    def _decode(self, content: bytes, name: str) -> NDArray[np.uint8]:
        side = self.image_px
        if self.coding == "raw":
            return np.frombuffer(content, np.uint8).reshape(side, side, 3)
        with suppress(UnreadableImage):
            image = decode_image(content, name)
            if image.shape == (side, side, 3):
                return image
        raise UnreadableImage(
            f"{self.root}: {name}", "it is no crop of the file's size: write the file again"
        )
