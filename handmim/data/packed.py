"""Crops in one packed file, or in WebDataset shards: tar files in which the files of one sample
share their name. Samples are read in any order.

The packed file, numbers little-endian:

    64 bytes     magic, version, 0, start and length of the index, SHA-256 of the index
    ...          images one after the other: JPEG files, or raw RGB rows
    index        JSON: image_px, coding, ids, ends (position after each image), crc32 of each

A sample of a shard is KEY.jpg (or another image ending) and, optionally, KEY.json with its
metadata: `group`, `crc32` of the image, and labels in the fields of keypoint files (`keypoints` as
21 x (x px, y px, visibility) in the stored image, `is_right`, `keypoint_scores`, `keypoints_3d`,
`K`). The headers of all shards are read once at the start.
"""

import hashlib
import json
import logging
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from handmim.data.annotations import read_hand
from handmim.data.crops import Crops
from handmim.data.datasets import digest_of
from handmim.data.hand_sides import SideReader
from handmim.data.samples import crop_sample, whole_image
from handmim.images.decode import (
    MAX_MEGAPIXELS,
    ImageArray,
    UnreadableImage,
    check_file_size,
    decode_image,
)
from handmim.images.files import ENDINGS
from handmim.types import CropSample, HandSample
from handmim.utils.files import UnreadableSample
from handmim.utils.findings import Notes
from handmim.utils.json_files import parse_json

log = logging.getLogger(__name__)

MAGIC, VERSION = b"HMcrops\n", 1
HEAD = struct.Struct("<8sIIQQ32s")
MAX_JSON_BYTES = 1 << 20  # of one sample's metadata


def read_part(path: Path, start: int, size: int, name: str) -> bytes:
    """Part of a file. Raises: UnreadableImage."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error


def read_index(path: Path) -> dict[str, Any]:
    """The index of a packed file. Raises: ValueError for anything but a complete one."""
    head = read_part(path, 0, HEAD.size, str(path)) if path.is_file() else b""
    if head[: len(MAGIC)] != MAGIC or len(head) < HEAD.size:
        raise ValueError(
            f"{path} is no file of packed crops (data.root=FILE): tools/pack_crops.py writes them, "
            "data=folder reads folders"
        )
    _, version, _, start, length, digest = HEAD.unpack(head)
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}: write it again (tools/pack_crops.py)")
    size = path.stat().st_size
    index = read_part(path, start, length, str(path)) if size == start + length else b""
    if size != start + length or hashlib.sha256(index).digest() != digest:
        raise ValueError(f"{path} is damaged, its head states another size or index; copy it again")
    return json.loads(index)


class PackedCrops(Crops):
    """The crops of a packed file, in its order. Raises: ValueError for other or damaged files."""

    def __init__(
        self, root: str | Path, *, group_by: str = "none", crop_scale: float = 1.0
    ) -> None:
        index = read_index(Path(root))
        super().__init__(root, int(index["image_px"]), "contain", group_by, crop_scale)
        self.coding, self.names = str(index["coding"]), index["ids"]
        self._ends = np.array([HEAD.size, *index["ends"]], np.int64)
        self._crc32 = np.array(index["crc32"], np.uint32)

    def fingerprint(self) -> str:
        """Digest of names and content, wherever the file lies."""
        index = self._ends.tobytes(), self._crc32.tobytes()
        return digest_of(str(self.image_px), self.coding, *self.names, *index)

    def sample(self, index: int) -> CropSample:
        """A stored crop. Raises: UnreadableImage where it is not what was written."""
        start, end = self._ends[index : index + 2].tolist()
        name, shape = f"{self.root}: {self.names[index]}", (self.image_px, self.image_px, 3)
        content = read_part(self.root, start, end - start, name)
        if zlib.crc32(content) != self._crc32[index]:
            raise UnreadableImage(name, "it is not what was written: copy the file again")
        if self.coding == "raw":
            return self.crop(index, np.frombuffer(content, np.uint8).reshape(shape))
        image = decode_image(content, name)
        if image.shape != shape:
            raise UnreadableImage(name, "it is no crop of the file's size: write the file again")
        return self.crop(index, image)


class Member(NamedTuple):
    """Location of a file within a tar file."""

    name: str
    start: int
    size: int

    def read(self, path: Path, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        """The file's content. Raises: UnreadableImage, also for more than an image can have."""
        check_file_size(self.size, max_megapixels, name)
        return read_part(path, self.start, self.size, name)


def tar_members(path: Path, *, requires_end: bool = True) -> Iterator[Member]:
    """Regular files of an uncompressed tar file; without the mark of its end it is refused, or that
    is logged. Raises: ValueError for another, damaged or short file."""
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and not member.issparse():
                    yield Member(member.name, member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} is cut short, or no uncompressed tar file: {error}") from error
    mark = read_part(path, end, tarfile.BLOCKSIZE, str(path))
    if not mark and not requires_end:
        log.warning("%s ends without the mark of its end: is it cut short?", path)
    elif mark != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{path} is damaged or cut short at byte {end}; copy it again")


class ShardCrops(Crops):
    """The crops of a shard or a folder of shards in their order; labelled where their metadata has
    keypoints. Stored images of other sizes are resized.

    Raises: ValueError naming a shard that is damaged, or for a folder without samples.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_px: int = 256,
        fit: str = "contain",
        group_by: str = "none",
        crop_scale: float = 1.0,
    ) -> None:
        super().__init__(root, image_px, fit, group_by, crop_scale)
        self.shards = sorted(self.root.glob("*.tar")) if self.root.is_dir() else [self.root]
        if not self.shards:
            raise ValueError(f"{root} holds no *.tar file (data.root is a folder of shards)")
        # Shard, image and metadata of each sample.
        self._stored: list[tuple[int, Member, Member | None]] = []
        for number, path in enumerate(self.shards):
            images: dict[str, Member] = {}
            metadata: dict[str, Member] = {}
            for member in tar_members(path):
                folder, file = os.path.split(member.name)
                base, _, ending = file.partition(".")  # as WebDataset divides names
                key, ending = os.path.join(folder, base), f".{ending.lower()}"
                if ending in ENDINGS and images.setdefault(key, member) is not member:
                    raise ValueError(f"{path} holds two images of key {key!r}: one is required")
                if ending == ".json":
                    metadata[key] = member
            self.names += [f"{path.stem}/{key}" for key in images]
            self._stored += [(number, image, metadata.get(key)) for key, image in images.items()]
        if not self._stored:
            raise ValueError(f"no image file ({' '.join(ENDINGS)}) in the shards of {root}")
        log.info("%d crops in %d shards of %s", len(self), len(self.shards), root)

    def fingerprint(self) -> str:
        """Digest of the names and sizes of all samples and shards, wherever they lie."""
        sizes = [f"{n} {image.start} {image.size} {meta}" for n, image, meta in self._stored]
        shards = [f"{path.name} {path.stat().st_size}" for path in self.shards]
        return digest_of(str(self.image_px), self.fit, *shards, *self.names, *sizes)

    def metadata_of(self, index: int) -> dict[str, Any]:
        """The metadata of a sample; {} where it has none. Raises: UnreadableSample."""
        shard, _, member = self._stored[index]
        if member is None:
            return {}
        name = self._name(index)
        if member.size > MAX_JSON_BYTES:
            raise UnreadableSample(name, f"its metadata has more than {MAX_JSON_BYTES} bytes")
        try:
            content = parse_json(member.read(self.shards[shard], name), member.name)
        except ValueError as error:
            raise UnreadableSample(name, str(error)) from error
        if not isinstance(content, dict):
            raise UnreadableSample(name, f"{member.name} holds no object")
        return content

    def _name(self, index: int) -> str:
        shard, image, _ = self._stored[index]
        return f"{self.shards[shard]}: {image.name}"

    def sample(self, index: int) -> CropSample | HandSample:
        """A crop, or a hand where there are keypoints."""
        shard, member, _ = self._stored[index]
        name, metadata = self._name(index), self.metadata_of(index)
        raw = member.read(self.shards[shard], name)
        if metadata.get("crc32") not in (None, zlib.crc32(raw)):
            raise UnreadableImage(name, "it is not what was written, the shard is damaged")
        if metadata.get("keypoints") is not None:
            return self._labelled(index, decode_image(raw, name), metadata)
        group = metadata.get("group")
        image = decode_image(raw, name, self.image_px, self.fit)
        return self.crop(index, image, None if group is None else str(group))

    def _labelled(self, index: int, image: ImageArray, metadata: Mapping[str, Any]) -> HandSample:
        notes, entry = Notes("keypoints"), self.names[index]
        hand = read_hand(notes, entry, 0, dict(metadata), SideReader([metadata], []))
        if notes.findings or hand is None:
            raise UnreadableSample(self._name(index), "; ".join(f.text for f in notes.findings))
        return crop_sample(
            image,
            whole_image(image, self.crop_scale, self.image_px),
            self.image_px,
            entry,
            kp2d_px=hand.keypoints[:, :2],
            **hand.labels,
        )
