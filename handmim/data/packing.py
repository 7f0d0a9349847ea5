"""Write square crops into one file (`data.packed`) or shards (`data.webdataset`), from a tree of
images, tar files of them, or photos with keypoints."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.data.crops import find_photos, log_left_out, named_unreadable, square
from handmim.data.keypoints import KeypointPhotos
from handmim.data.packed import CODINGS, PackedWriter
from handmim.data.webdataset import ShardWriter, tar_members
from handmim.images.decode import (
    FITS,
    MAX_MEGAPIXELS,
    UnreadableImage,
    check_file_size,
    decode_image,
    jpeg_head,
    read_bytes,
)
from handmim.images.files import ENDINGS, find_images
from handmim.images.formats import printable
from handmim.images.maps import find_maps
from handmim.utils.arguments import at_least, one_of
from handmim.utils.files import UnreadableSample, atomic_path, remove_leftovers

log = logging.getLogger(__name__)

AT_ONCE = 256  # images in memory


class Source(NamedTuple):
    """Location of an image."""

    sample_id: str
    path: Path
    start: int = 0  # within a tar file
    size: int = -1  # -1: a file of its own

    def content(self, max_megapixels: float) -> bytes:
        """The image's file.

        Raises: UnreadableImage.
        """
        if self.size < 0:
            return read_bytes(self.path, max_megapixels)
        check_file_size(self.size, max_megapixels, self.sample_id)
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise UnreadableImage(self.sample_id, error.strerror or str(error)) from error


class Coded(NamedTuple):
    """A crop as a file, and its metadata."""

    sample_id: str
    content: bytes
    metadata: Mapping[str, Any] = {}


def find_sources(
    source: Path,
    *,
    exclude: Sequence[str] = (),
    include_all: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> list[Source]:
    """Images of a tree, or of a tar file or a folder of them, in a fixed order; masks and maps are
    left out as in `crops.find_photos`.

    Raises: ValueError when there are none, for a folder with both kinds, or for a tar file that is
        compressed or damaged.
    """
    if not source.exists():
        raise ValueError(f"no such file or folder: {printable(str(source))}")
    tars = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    if not tars:
        tree = find_photos(
            source, exclude=exclude, include_all=include_all, max_megapixels=max_megapixels
        )
        log_left_out(tree)
        return [Source(name, source / name) for name in tree.names]
    if source.is_dir() and _has_images(source):
        raise ValueError(
            f"{source} holds images beside {tars[0].name}: put the tar files in a folder of "
            "their own, or unpack them"
        )
    # of two members of one name the later counts, as when unpacked
    found = {member.sample_id: member for path in tars for member in _images_of(path)}
    gone = {name for name in found if any(fnmatch(name, pattern) for pattern in exclude)}
    if not include_all:
        names = [name for name in found if name not in gone]
        maps = find_maps(
            names,
            lambda name: found[name].content(max_megapixels),
            max_megapixels=max_megapixels,
        )
        if sum(map(len, maps.values())) < len(names):  # else maps are what is meant
            for kind, members in maps.items():
                text = "%d of %d images of %s left out: %s (--include-all keeps them)"
                log.warning(text, len(members), len(found), source, kind)
                gone.update(members)
    sources = [member for name, member in found.items() if name not in gone]
    if not sources:
        raise ValueError(f"no image file ({' '.join(ENDINGS)}) in {source}")
    return sources


def _images_of(path: Path) -> Iterator[Source]:
    num_others = 0
    for name, start, size in tar_members(path, requires_end=False):
        if os.path.splitext(name)[1].lower() in ENDINGS:
            yield Source(f"{path.stem}/{name}", path, start, size)
        else:
            num_others += 1
    if num_others:
        log.info("left out of %s: %d files that are no images", path, num_others)


def _has_images(folder: Path) -> bool:
    try:
        return bool(find_images(folder).names)
    except ValueError:
        return False


class Coder(NamedTuple):
    """How crops become files.

    Args:
        image_px, fit: of the crops, as `crops.CropFolder` makes them.
        coding: "jpeg"; "raw" is pixels without loss, as PNG in shards.
        quality: of JPEGs, 1 to 100; files that are such crops already are copied.
        is_shard: crops go into shards.
        max_megapixels: larger images are refused before they are decoded.
    """

    image_px: int
    fit: str
    coding: str
    quality: int
    is_shard: bool
    max_megapixels: float

    def file(self, crop: NDArray[np.uint8]) -> bytes:
        """A square crop as the content of a file."""
        if self.coding == "raw" and not self.is_shard:
            return crop.tobytes()
        ending, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        if self.coding == "raw":
            ending, options = ".png", []
        return cv2.imencode(ending, cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), options)[1].tobytes()

    def image(self, source: Source) -> Coded | UnreadableSample:
        """The crop of an image."""
        try:
            content = source.content(self.max_megapixels)
            image = decode_image(
                content,
                source.sample_id,
                self.image_px,
                self.fit,
                max_megapixels=self.max_megapixels,
            )
        except UnreadableImage as error:
            return error
        head = jpeg_head(content) if self.coding == "jpeg" else None
        if head is None or head != (self.image_px, self.image_px, 1):
            content = self.file(square(image, self.image_px, self.fit))
        return Coded(source.sample_id, content)

    def hand(self, photos: KeypointPhotos, index: int) -> Coded | UnreadableSample:
        """The crop of a labelled hand, with its labels in pixels of the crop."""
        try:
            sample = photos[index]
        except UnreadableSample as error:
            return error
        points = np.column_stack([sample.kp2d_crop_px, 2 * sample.kp2d_valid])
        metadata: dict[str, Any] = {"is_right": sample.is_right, "keypoints": points.tolist()}
        metadata["keypoint_scores"] = sample.kp2d_conf.tolist()
        if sample.joints_valid.any():
            joints = np.column_stack([sample.joints_cam_m, sample.joints_valid])
            metadata["keypoints_3d"] = joints.tolist()
        if sample.has_K:
            metadata["K"] = sample.K_crop_px.tolist()
        return Coded(photos.label_id(index), self.file(sample.image), metadata)


def pack_crops(
    source: Path,
    target: Path,
    *,
    image_px: int = 256,
    fit: str = "contain",
    coding: str = "jpeg",
    quality: int = 95,
    shard_size: int | None = None,
    annotations: Path | None = None,
    overwrite: bool = False,
    exclude: Sequence[str] = (),
    include_all: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[str]:
    """Write all readable photos as square crops; the target appears complete or not at all.

    Args:
        source: a tree of images, a tar file of them, or a folder of such files.
        target: file to write; folder with `shard_size`.
        image_px, fit, coding, quality, max_megapixels: as of `Coder`.
        shard_size: samples of a WebDataset shard; None writes one packed file.
        annotations: keypoint file of the images (`data.keypoints`): shards of labelled hands.
        overwrite: replace the target.
        exclude, include_all: as of `crops.CropFolder`.
        progress: called with the numbers of finished and of all images.
    Returns: ids of the images that cannot be read and were left out.
    Raises: ValueError for bad settings or nothing to read; FileExistsError.
    """
    one_of("fit", fit, FITS)
    one_of("coding", coding, CODINGS)
    at_least(1, image_px=image_px)
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in 1..100, got {quality}")
    if shard_size is not None:
        at_least(1, shard_size=shard_size)
    elif annotations is not None:
        raise ValueError("labels are kept in shards only: set shard_size (--shard-size)")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: take another name, or overwrite it (--overwrite)")
    coder = Coder(image_px, fit, coding, quality, shard_size is not None, max_megapixels)
    code: Callable[[Any], Coded | UnreadableSample]
    items: Sequence[Any]
    if annotations is not None:
        photos = KeypointPhotos(source, annotations, split="all", image_px=image_px)
        items, code = range(len(photos)), partial(coder.hand, photos)
    else:
        items = find_sources(
            source, exclude=exclude, include_all=include_all, max_megapixels=max_megapixels
        )
        code = coder.image
    unreadable: dict[str, str] = {}
    with _writer(target, coder, shard_size) as writer:
        for done, result in enumerate(_in_order(items, code), start=1):
            if isinstance(result, Coded):
                writer.add(*result)
            else:
                unreadable[result.path] = result.reason
            progress(done, len(items))
        if len(unreadable) == len(items):
            reasons = named_unreadable(unreadable, len(items))
            raise ValueError(f"none of the images of {source} can be read: {reasons}")
    if unreadable:
        log.warning(named_unreadable(unreadable, len(items)))
    return list(unreadable)


@contextmanager
def _writer(
    target: Path, coder: Coder, shard_size: int | None
) -> Iterator[PackedWriter | ShardWriter]:
    target.parent.mkdir(parents=True, exist_ok=True)
    if shard_size is None:
        remove_leftovers(target.parent, name=target.name)
        with atomic_path(target) as whole_file, whole_file.open("wb") as file:
            packed = PackedWriter(file, coder.image_px, coder.coding)
            yield packed
            packed.close()
        return
    partial_folder = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir()
    try:
        shards = ShardWriter(partial_folder, shard_size, "png" if coder.coding == "raw" else "jpeg")
        yield shards
        shards.close()
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        partial_folder.rename(target)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _in_order(
    items: Sequence[Any], code: Callable[[Any], Coded | UnreadableSample]
) -> Iterator[Coded | UnreadableSample]:
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for first in range(0, len(items), AT_ONCE):
            yield from pool.map(code, items[first : first + AT_ONCE])
