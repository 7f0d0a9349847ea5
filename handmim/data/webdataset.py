"""Crops in WebDataset shards: tar files in which the files of one sample share their name.

A sample is KEY.jpg (or another image ending) and, optionally, KEY.json with its metadata: `group`,
`crc32` of the image, and labels in the fields of keypoint files (`keypoints` as 21 x (x px, y px,
visibility) in the stored image, `is_right`, `keypoint_scores`, `keypoints_3d`, `K`). The headers of
all shards are read once at the start, so samples are read in any order: shuffling, resuming,
workers and ranks are those of any other dataset.
"""

import io
import json
import logging
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from handmim.data.annotations import read_field, read_joints, read_keypoints
from handmim.data.crops import check_grouping, group_of, square
from handmim.data.datasets import digest_of
from handmim.data.hand_sides import SideReader
from handmim.data.samples import carry_intrinsics, carry_points, crop_map, cut, hand_sample
from handmim.images.decode import MAX_MEGAPIXELS, UnreadableImage, check_file_size, decode_image
from handmim.images.files import ENDINGS
from handmim.types import CropSample, HandSample
from handmim.utils.arguments import one_of
from handmim.utils.files import UnreadableSample
from handmim.utils.findings import Notes
from handmim.utils.json_files import parse_json

log = logging.getLogger(__name__)

MAX_JSON_BYTES = 1 << 20  # of one sample's metadata
CODINGS = {"jpeg": ".jpg", "png": ".png"}


class Member(NamedTuple):
    """Location of a file within a tar file."""

    name: str
    start: int
    size: int


def tar_members(path: Path, *, requires_end: bool = True) -> Iterator[Member]:
    """Regular files of an uncompressed tar file.

    Args:
        path: of the file.
        requires_end: refuse a file without the mark of its end; else that is logged.
    Raises: ValueError for a file that is no such tar file, is damaged or cut short.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and not member.issparse():
                    yield Member(member.name, member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{path} is no uncompressed tar file (gunzip it first?), or is cut short: {error}"
        ) from error
    with path.open("rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
    if not mark and not requires_end:
        log.warning("%s ends without the mark of its end: is it cut short?", path)
    elif mark != bytes(tarfile.BLOCKSIZE):
        raise ValueError(
            f"{path} is damaged or cut short: a header or the mark of its end is missing at byte "
            f"{end} of {path.stat().st_size}; copy it again"
        )


class _Stored(NamedTuple):
    shard: int
    image: Member
    metadata: Member | None


class ShardCrops(Dataset[CropSample | HandSample]):
    """The crops of a folder of shards in their order; labelled where their metadata has keypoints.

    Args:
        root: folder of *.tar files, or one of them.
        image_px: side of the crops; stored images of other sizes are resized.
        fit: of unlabelled images that are no squares: "contain" (borders are reflected) or "cover".
        group_by: "folder" when images of one folder show nearly the same hand and their metadata
            has no `group`; "none" otherwise.
    Raises: ValueError naming a shard that is damaged, or for a folder without samples.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_px: int = 256,
        fit: str = "contain",
        group_by: str = "none",
    ) -> None:
        check_grouping(group_by)
        one_of("fit", fit, ("contain", "cover"))
        self.root, self.image_px, self.fit, self.group_by = Path(root), image_px, fit, group_by
        self.shards = sorted(self.root.glob("*.tar")) if self.root.is_dir() else [self.root]
        if not self.shards:
            raise ValueError(f"{root} holds no *.tar file (data.root is a folder of shards)")
        self.names: list[str] = []
        self._stored: list[_Stored] = []
        for number, path in enumerate(self.shards):
            self._index(number, path)
        if not self._stored:
            raise ValueError(f"no image file ({' '.join(ENDINGS)}) in the shards of {root}")
        log.info("%d crops in %d shards of %s", len(self), len(self.shards), root)

    def _index(self, number: int, path: Path) -> None:
        images: dict[str, Member] = {}
        metadata: dict[str, Member] = {}
        for member in tar_members(path):
            folder, file = os.path.split(member.name)
            base, _, ending = file.partition(".")  # as WebDataset divides names
            key, ending = os.path.join(folder, base), f".{ending.lower()}"
            if ending in ENDINGS and key in images:
                raise ValueError(f"{path} holds two images of key {key!r}: one is required")
            if ending in ENDINGS:
                images[key] = member
            elif ending == ".json":
                metadata[key] = member
        for key, image in images.items():
            self.names.append(f"{path.stem}/{key}")
            self._stored.append(_Stored(number, image, metadata.get(key)))

    def fingerprint(self) -> str:
        """Digest of the names and sizes of all samples and shards, wherever they lie."""
        sizes = [f"{s.shard} {s.image.start} {s.image.size} {s.metadata}" for s in self._stored]
        shards = [f"{path.name} {path.stat().st_size}" for path in self.shards]
        return digest_of(str(self.image_px), self.fit, *shards, *self.names, *sizes)

    def __len__(self) -> int:
        return len(self.names)

    def metadata_of(self, index: int) -> dict[str, Any]:
        """The metadata of a sample; {} where it has none.

        Raises: UnreadableSample for anything else than a JSON object of usual size.
        """
        stored = self._stored[index]
        if stored.metadata is None:
            return {}
        name = self._name(index)
        if stored.metadata.size > MAX_JSON_BYTES:
            raise UnreadableSample(name, f"its metadata has more than {MAX_JSON_BYTES} bytes")
        raw = self._read(stored.shard, stored.metadata)
        try:
            content = parse_json(raw, stored.metadata.name)
        except ValueError as error:
            raise UnreadableSample(name, str(error)) from error
        if not isinstance(content, dict):
            raise UnreadableSample(name, f"{stored.metadata.name} holds no object")
        return content

    def _name(self, index: int) -> str:
        stored = self._stored[index]
        return f"{self.shards[stored.shard]}: {stored.image.name}"

    def _read(self, shard: int, member: Member) -> bytes:
        path = self.shards[shard]
        try:
            with path.open("rb") as file:
                file.seek(member.start)
                return file.read(member.size)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnreadableImage(f"{path}: {member.name}", reason) from error

    def __getitem__(self, index: int) -> CropSample | HandSample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} crops")
        stored, name = self._stored[index], self._name(index)
        metadata = self.metadata_of(index)
        check_file_size(stored.image.size, MAX_MEGAPIXELS, name)
        raw = self._read(stored.shard, stored.image)
        if metadata.get("crc32") not in (None, zlib.crc32(raw)):
            raise UnreadableImage(name, "it is not what was written, the shard is damaged")
        if metadata.get("keypoints") is not None:
            return self._labelled(index, decode_image(raw, name), metadata)
        image = square(decode_image(raw, name, self.image_px, self.fit), self.image_px, self.fit)
        group = metadata.get("group")
        group = group_of(self.names[index], self.group_by) if group is None else str(group)
        return CropSample(image, self.names[index], group=group)

    def _labelled(
        self, index: int, image: np.ndarray[Any, np.dtype[np.uint8]], metadata: Mapping[str, Any]
    ) -> HandSample:
        notes, entry = Notes("keypoints"), self.names[index]
        keypoints = read_keypoints(notes, entry, metadata, "keypoints")
        scores, K = (read_field(notes, entry, metadata, f) for f in ("keypoint_scores", "K"))
        joints, is_valid = read_joints(notes, entry, metadata)
        is_right = True
        try:
            is_right, _ = SideReader([metadata], []).read(metadata) or (True, "")
        except ValueError as error:
            notes.error("side", str(error))
        if notes.findings or keypoints is None:
            raise UnreadableSample(self._name(index), "; ".join(f.text for f in notes.findings))
        height, width = image.shape[:2]
        crop_from_img = crop_map(np.array([0.0, 0.0, width, height]), 1.0, self.image_px)
        return hand_sample(
            cut(image, crop_from_img, self.image_px),
            entry,
            is_right=is_right,
            K_crop_px=None if K is None else carry_intrinsics(crop_from_img, K),
            kp2d_crop_px=carry_points(crop_from_img, keypoints[:, :2]),
            kp2d_valid=keypoints[:, 2] > 0,
            kp2d_conf=None if scores is None else scores[0],
            joints_cam_m=joints,
            joints_valid=is_valid,
        )


class ShardWriter:
    """Write samples into crops-000000.tar, crops-000001.tar, ... of a folder.

    Equal samples give equal bytes: files carry no time and no owner.

    Args:
        folder: exists and is empty.
        shard_size: samples of a shard.
        coding: of the images, a key of `CODINGS`.
    """

    def __init__(self, folder: Path, shard_size: int, coding: str) -> None:
        self.folder, self.shard_size, self.ending = folder, shard_size, CODINGS[coding]
        self.count = 0
        self._keys: set[str] = set()
        self._tar: tarfile.TarFile | None = None

    def add(self, sample_id: str, image: bytes, metadata: Mapping[str, Any] | None = None) -> None:
        """Write one image and its metadata.

        Args:
            sample_id: its name; the ending goes, further dots become "_", a name that was there
                gets a number.
            image: content of its file.
            metadata: JSON content.
        """
        if self.count % self.shard_size == 0:
            self.close()
            name = f"crops-{self.count // self.shard_size:06d}.tar"
            self._tar = tarfile.TarFile(self.folder / name, "w", format=tarfile.PAX_FORMAT)
        folder, file = os.path.split(os.path.splitext(sample_id)[0])
        key = base = os.path.join(folder, file.replace(".", "_") or "_")
        number = 2
        while key in self._keys:
            key, number = f"{base}-{number}", number + 1
        self._keys.add(key)
        facts = {"source": sample_id, "crc32": zlib.crc32(image), **(metadata or {})}
        self._put(key + self.ending, image)
        self._put(f"{key}.json", json.dumps(facts, separators=(",", ":")).encode())
        self.count += 1

    def _put(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))

    def close(self) -> None:
        """End the last shard."""
        if self._tar is not None:
            self._tar.close()
        self._tar = None
