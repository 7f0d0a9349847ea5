"""Write square crops into one file or shards (`data.packed`), from a tree of images, tar files of
them, or photos with keypoints."""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.data.crops import find_photos, log_left_out, named_unreadable, square
from handmim.data.keypoints import KeypointPhotos
from handmim.data.packed import HEAD, MAGIC, VERSION, tar_members
from handmim.images.decode import FITS, MAX_MEGAPIXELS, decode_image, jpeg_head, read_bytes
from handmim.images.files import ENDINGS, ImageTree, find_images, leave_out_maps
from handmim.images.formats import printable
from handmim.utils.arguments import at_least, one_of
from handmim.utils.files import UnreadableSample, atomic_path, remove_leftovers

log = logging.getLogger(__name__)

CODINGS = ("jpeg", "raw")
AT_ONCE = 256  # images in memory


class CodedCrop(NamedTuple):
    """A crop as the content of a file, and its metadata, which a packed file has no room for."""

    sample_id: str
    content: bytes
    metadata: Mapping[str, Any] = {}


def write_packed(path: Path, crops: Iterable[CodedCrop], *, image_px: int, coding: str) -> None:
    """Write crops one after the other, and the index last."""
    rows = []
    with path.open("wb") as file:
        file.write(bytes(HEAD.size))
        for crop in crops:
            file.write(crop.content)
            rows.append((crop.sample_id, file.tell(), zlib.crc32(crop.content)))
        ids, ends, crcs = zip(*rows, strict=True)
        content = {"image_px": image_px, "coding": coding, "ids": ids, "ends": ends, "crc32": crcs}
        index = json.dumps(content, separators=(",", ":")).encode()
        start = file.tell()
        file.write(index)
        file.seek(0)
        digest = hashlib.sha256(index).digest()
        file.write(HEAD.pack(MAGIC, VERSION, 0, start, len(index), digest))


def write_shards(folder: Path, crops: Iterable[CodedCrop], *, shard_size: int, ending: str) -> None:
    """Write crops into crops-000000.tar, crops-000001.tar, ... of an empty folder, under their ids
    without ending, further dots as "_" and a number on a name that was there. Equal crops give
    equal bytes: files carry no time and no owner."""
    keys = set[str]()
    with contextlib.ExitStack() as stack:
        for count, (sample_id, image, metadata) in enumerate(crops):
            if count % shard_size == 0:
                stack.close()
                name = f"crops-{count // shard_size:06d}.tar"
                tar = tarfile.TarFile(folder / name, "w", format=tarfile.PAX_FORMAT)
                stack.enter_context(tar)
            parent, file = os.path.split(os.path.splitext(sample_id)[0])
            base = os.path.join(parent, file.replace(".", "_") or "_")
            names = itertools.chain([base], (f"{base}-{i}" for i in itertools.count(2)))
            key = next(name for name in names if name not in keys)
            keys.add(key)
            facts = {"source": sample_id, "crc32": zlib.crc32(image), **metadata}
            text = json.dumps(facts, separators=(",", ":")).encode()
            for name, content in ((key + ending, image), (f"{key}.json", text)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def find_sources(
    source: Path, exclude: Sequence[str], include_all: bool, max_megapixels: float
) -> dict[str, Callable[[], bytes]]:
    """Images of a tree, or of a tar file or a folder of them, in a fixed order: functions that read
    their files, by name. Masks and maps are left out as in `crops.find_photos`. Raises:
    ValueError."""
    if not source.exists():
        raise ValueError(f"no such file or folder: {printable(str(source))}")
    tars = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    if not tars:
        tree = find_photos(source, exclude, include_all, max_megapixels)
        log_left_out(tree)
        return {name: partial(read_bytes, source / name, max_megapixels) for name in tree.names}
    images = list[str]()
    with contextlib.suppress(ValueError):  # of a file, or of a folder without images
        images = find_images(source).names
    if images:
        text = f"{source} holds images beside {tars[0].name}"
        raise ValueError(f"{text}: put the tar files in a folder of their own, or unpack them")
    tree, found = ImageTree(source), dict[str, Callable[[], bytes]]()
    for path in tars:
        for member in tar_members(path, requires_end=False):
            name, ending = f"{path.stem}/{member.name}", os.path.splitext(member.name)[1].lower()
            if ending in ENDINGS:  # of two members of one name the later counts, as when unpacked
                found[name] = partial(member.read, path, name, max_megapixels)
            else:
                tree.endings[ending or "no ending"] += 1
    tree.names = [name for name in found if not any(fnmatch(name, text) for text in exclude)]
    if not include_all:
        leave_out_maps(tree, lambda name: found[name](), max_megapixels)
    log_left_out(tree)
    if not tree.names:
        raise ValueError(f"no image file ({' '.join(ENDINGS)}) in {source}")
    return {name: found[name] for name in tree.names}


class Coder(NamedTuple):
    """How crops become files: JPEG, PNG, or pixels as they are."""

    image_px: int
    fit: str
    ending: str  # ".jpg", ".png" or ""
    quality: int  # of JPEGs, 1 to 100; files that are such crops already are copied
    max_megapixels: float

    def file(self, crop: NDArray[np.uint8]) -> bytes:
        """A square crop as the content of a file."""
        if not self.ending:
            return crop.tobytes()
        options = [cv2.IMWRITE_JPEG_QUALITY, self.quality] if self.ending == ".jpg" else []
        bgr = cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
        return cv2.imencode(self.ending, bgr, options)[1].tobytes()

    def image(self, source: tuple[str, Callable[[], bytes]]) -> CodedCrop:
        """The crop of an image. Raises: UnreadableImage."""
        name, raw = source[0], source[1]()
        image = decode_image(raw, name, self.image_px, self.fit, max_megapixels=self.max_megapixels)
        if self.ending == ".jpg" and jpeg_head(raw) == (self.image_px, self.image_px, 1):
            return CodedCrop(name, raw)
        return CodedCrop(name, self.file(square(image, self.image_px, self.fit)))

    def hand(self, photos: KeypointPhotos, index: int) -> CodedCrop:
        """The crop of a labelled hand, with its labels in pixels of the crop."""
        sample = photos[index]
        points = np.column_stack([sample.kp2d_crop_px, 2 * sample.kp2d_valid])
        metadata: dict[str, Any] = {"is_right": sample.is_right, "keypoints": points.tolist()}
        metadata["keypoint_scores"] = sample.kp2d_conf.tolist()
        if sample.joints_valid.any():
            joints = np.column_stack([sample.joints_cam_m, sample.joints_valid])
            metadata["keypoints_3d"] = joints.tolist()
        if sample.has_K:
            metadata["K"] = sample.K_crop_px.tolist()
        return CodedCrop(photos.label_id(index), self.file(sample.image), metadata)


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
        target: file to write; folder of shards with `shard_size` samples each.
        image_px, fit, exclude, include_all, max_megapixels: as of `crops.CropFolder`.
        coding: "jpeg" of a quality; "raw" is pixels without loss, as PNG in shards.
        annotations: keypoint file of the images (`data.keypoints`): shards of labelled hands.
        progress: called with the numbers of finished and of all images.
    Returns: ids of the images that cannot be read and were left out.
    Raises: ValueError for bad settings or nothing to read; FileExistsError.
    """
    one_of("fit", fit, FITS)
    one_of("coding", coding, CODINGS)
    at_least(1, image_px=image_px, shard_size=1 if shard_size is None else shard_size)
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in 1..100, got {quality}")
    if shard_size is None and annotations is not None:
        raise ValueError("labels are kept in shards only: set shard_size (--shard-size)")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: take another name, or overwrite it (--overwrite)")
    ending = ".jpg" if coding == "jpeg" else ".png" if shard_size is not None else ""
    coder = Coder(image_px, fit, ending, quality, max_megapixels)
    code: Callable[[Any], CodedCrop] = coder.image
    items: Sequence[Any]
    if annotations is not None:
        photos = KeypointPhotos(source, annotations, split="all", image_px=image_px)
        items, code = range(len(photos)), partial(coder.hand, photos)
    else:
        items = list(find_sources(source, exclude, include_all, max_megapixels).items())
    unreadable: dict[str, str] = {}

    def attempt(item: Any) -> CodedCrop | UnreadableSample:
        try:
            return code(item)
        except UnreadableSample as error:
            return error

    def readable() -> Iterator[CodedCrop]:
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            for first in range(0, len(items), AT_ONCE):
                results = pool.map(attempt, items[first : first + AT_ONCE])
                for done, result in enumerate(results, start=first + 1):
                    if isinstance(result, CodedCrop):
                        yield result
                    else:
                        unreadable[result.path] = result.reason
                    progress(done, len(items))
        if len(unreadable) == len(items):
            reasons = named_unreadable(unreadable, len(items))
            raise ValueError(f"none of the images of {source} can be read: {reasons}")

    target.parent.mkdir(parents=True, exist_ok=True)
    if shard_size is None:
        remove_leftovers(target.parent, name=target.name)
        with atomic_path(target) as whole:
            write_packed(whole, readable(), image_px=image_px, coding=coding)
    else:
        with _whole_folder(target) as whole:
            write_shards(whole, readable(), shard_size=shard_size, ending=ending)
    if unreadable:
        log.warning(named_unreadable(unreadable, len(items)))
    return list(unreadable)


@contextlib.contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    whole = target.with_name(f".{target.name}.partial")
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    try:
        yield whole
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        whole.rename(target)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
