"""Unlabeled crops in one file, to be read in any order: no folder to walk, no large photos to
decode, no file to open per picture. `handmim.data.packing` writes it.

The file, numbers little-endian:

    64 bytes     magic, version, 0, start and length of the index, SHA-256 of the index
    ...          pictures one after the other: JPEG files, or raw RGB rows
    index        JSON: image_px, coding, ids, ends (places after each picture), crc32 of each

A file that was cut short, or is another, is refused when it is opened; a picture that changed on
disk when it is read.
"""

import hashlib
import json
import mmap
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data.crops import check_grouping, group_of
from handmim.data.datasets import digest_of
from handmim.images.decode import UnreadableImage, decode_rgb
from handmim.types import CropSample

MAGIC, VERSION = b"HMcrops\n", 1
HEAD = struct.Struct("<8sIIQQ32s")
CODINGS = ("jpeg", "raw")


def packed_head(start: int, index: bytes) -> bytes:
    """The first bytes of a file whose index lies at `start`."""
    return HEAD.pack(MAGIC, VERSION, 0, start, len(index), hashlib.sha256(index).digest())


def read_index(path: Path) -> dict[str, Any]:
    """The index of a file.

    Raises: ValueError for anything that is no whole file of packed crops.
    """
    if not path.is_file():
        is_folder = f"{path} is a folder: data=folder, or pack it first"
        what = is_folder if path.is_dir() else f"no file {path}"
        raise ValueError(f"{what} (data.root=FILE, written by tools/pack_crops.py)")
    with path.open("rb") as file:
        head = file.read(HEAD.size)
        if head[: len(MAGIC)] != MAGIC or len(head) < HEAD.size:
            raise ValueError(
                f"{path} holds no packed crops (data.root=FILE, written by tools/pack_crops.py)"
            )
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
            f"{path} is damaged: {size} bytes and another index than its head tells of "
            f"({start + length} bytes); copy it again (data.root)"
        )
    return json.loads(index)


class PackedCrops(Dataset[CropSample]):
    """The crops of a packed file, in its order.

    Args:
        root: the file.
        group_by: "folder" when pictures of one folder show nearly the same hand (frames of a
            video), so that they are no negatives of each other; "none" otherwise.
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
        """A picture as it lies in the file.

        Raises: UnreadableImage where it is not what was written.
        """
        if self._map is None:
            with self.root.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = self._map[self._ends[index] : self._ends[index + 1]]
        if zlib.crc32(content) != self._crc32[index]:
            raise UnreadableImage(
                f"{self.root}: {self.names[index]}",
                "it is not what was written, the file is damaged: copy it again (data.root)",
            )
        return content

    def __getitem__(self, index: int) -> CropSample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pictures")
        name = self.names[index]
        return CropSample(
            image=self._pixels(self.stored(index), name),
            sample_id=name,
            group=group_of(name, self.group_by),
        )

    def _pixels(self, content: bytes, name: str) -> NDArray[np.uint8]:
        side = self.image_px
        if self.coding == "raw":
            return np.frombuffer(content, np.uint8).reshape(side, side, 3)
        image = decode_rgb(content)
        if image is None or image.shape != (side, side, 3):
            raise UnreadableImage(
                f"{self.root}: {name}", "it is no crop of the file's size: write the file again"
            )
        return image
