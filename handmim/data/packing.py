"""Writing packed crops (`handmim.data.packed`) from a tree of images, or tar files of them."""

import json
import logging
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2

from handmim.data.crops import find_photos, log_left_out, named_unreadable, square
from handmim.data.packed import CODINGS, HEAD, packed_head
from handmim.images.decode import (
    BYTES_PER_PIXEL,
    FITS,
    MAX_MEGAPIXELS,
    UnreadableImage,
    decode_image,
    jpeg_head,
    read_bytes,
)
from handmim.images.files import ENDINGS, find_images
from handmim.images.formats import printable
from handmim.images.maps import find_maps
from handmim.utils.files import atomic_path, remove_leftovers

log = logging.getLogger(__name__)

AT_ONCE = 256  # images in memory


class Place(NamedTuple):
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
        if self.size > max_megapixels * 1e6 * BYTES_PER_PIXEL:
            raise UnreadableImage(self.sample_id, "it is larger than any image may be")
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise UnreadableImage(self.sample_id, error.strerror or str(error)) from error


def find_pictures(
    source: Path,
    *,
    exclude: Sequence[str] = (),
    include_all: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> list[Place]:
    """Images of a tree, or of a tar file or a folder of them, in a fixed order; masks and maps are
    left out as `crops.find_photos` does it.

    Raises: ValueError when there are none, for a folder with both kinds, or for a tar file that is
        compressed or broken.
    """
    if not source.exists():
        raise ValueError(f"no such file or folder: {printable(str(source))}")
    tars = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    if not tars:
        tree = find_photos(
            source, exclude=exclude, include_all=include_all, max_megapixels=max_megapixels
        )
        log_left_out(tree)
        return [Place(name, source / name) for name in tree.names]
    if source.is_dir() and _has_pictures(source):
        raise ValueError(
            f"{source} holds images beside {tars[0].name}: put the tar files in a folder of "
            "their own, or unpack them"
        )
    found = {place.sample_id: place for path in tars for place in _members(path)}
    gone = {name for name in found if any(fnmatch(name, pattern) for pattern in exclude)}
    if not include_all:
        names = [name for name in found if name not in gone]
        maps = find_maps(
            names,
            lambda name: found[name].content(max_megapixels),
            max_megapixels=max_megapixels,
        )
        for kind, members in maps.items():
            if sum(map(len, maps.values())) == len(names):
                break  # no photos at all: maps are what is meant
            log.warning(
                "%d of %d images of %s left out: %s (--include-all keeps them)",
                len(members), len(found), source, kind,
            )  # fmt: skip
            gone.update(members)
    places = [place for name, place in found.items() if name not in gone]
    if not places:
        raise ValueError(f"no image file ({' '.join(ENDINGS)}) in {source}")
    return places


def _members(path: Path) -> Iterator[Place]:
    """Images of a tar file; of two members of one name the later counts, as when unpacked."""
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    others: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                ending = os.path.splitext(member.name)[1].lower()
                if member.isdir():
                    continue
                if not member.isfile() or member.issparse():
                    others["link, device or sparse file"] += 1
                elif ending in ENDINGS:
                    name = f"{path.stem}/{member.name}"
                    yield Place(name, path, member.offset_data, member.size)
                else:
                    others[printable(ending) or "no ending"] += 1
            if path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:
                log.warning("%s ends without the mark of its end: is it cut short?", path)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{path} is no uncompressed tar file (gunzip it first?), or is cut short: {error}"
        ) from error
    if others:
        counts = ", ".join(f"{count} x {what}" for what, count in others.most_common())
        log.info("left out of %s: %s", path, counts)


def _has_pictures(folder: Path) -> bool:
    try:
        return bool(find_images(folder).names)
    except ValueError:
        return False


def _coded(
    place: Place, image_px: int, fit: str, coding: str, quality: int, max_megapixels: float
) -> bytes | UnreadableImage:
    try:
        content = place.content(max_megapixels)
        image = decode_image(content, place.sample_id, image_px, fit, max_megapixels=max_megapixels)
    except UnreadableImage as error:
        return error
    if coding == "raw":
        return square(image, image_px, fit).tobytes()
    head = jpeg_head(content)
    if head is not None and head == (image_px, image_px, 1):
        return content  # it is what is wanted: nothing is lost by coding it again
    crop = cv2.cvtColor(square(image, image_px, fit), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def pack_crops(
    source: Path,
    target: Path,
    *,
    image_px: int = 256,
    fit: str = "contain",
    coding: str = "jpeg",
    quality: int = 95,
    overwrite: bool = False,
    exclude: Sequence[str] = (),
    include_all: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[str]:
    """Write all readable photos as square crops into one file, which appears whole or not at all.

    Args:
        source: a tree of pictures, a tar file of them, or a folder of such files.
        target: file to write.
        image_px, fit: of the crops, as `crops.CropFolder` makes them.
        coding: "jpeg", or "raw" pixels, which take no time to decode and ten times the space.
        quality: of JPEGs, 1 to 100; files that are such crops already are kept as they are.
        overwrite: replace what is there.
        exclude, include_all, max_megapixels: as of `crops.CropFolder`.
        progress: told how many of how many pictures are done.
    Returns: ids of the pictures that cannot be read and were left out.
    Raises: ValueError for bad settings or nothing to read; FileExistsError.
    """
    for name, value, valid in (("fit", fit, FITS), ("coding", coding, CODINGS)):
        if value not in valid:
            raise ValueError(f"{name} must be one of {valid}, got {value!r}")
    if image_px < 1 or not 1 <= quality <= 100:
        raise ValueError(f"need image_px >= 1 and quality in 1..100, got {image_px}, {quality}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: take another name, or overwrite it (--overwrite)")
    places = find_pictures(
        source, exclude=exclude, include_all=include_all, max_megapixels=max_megapixels
    )
    code = partial(
        _coded,
        image_px=image_px,
        fit=fit,
        coding=coding,
        quality=quality,
        max_megapixels=max_megapixels,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, name=target.name)
    with atomic_path(target) as whole_file:
        with whole_file.open("wb") as file:
            unreadable = _write(file, places, code, image_px, coding, progress)
        if len(unreadable) == len(places):
            reasons = named_unreadable(unreadable, len(places))
            raise ValueError(f"none of the images of {source} can be read: {reasons}")
    if unreadable:
        log.warning(named_unreadable(unreadable, len(places)))
    return list(unreadable)


def _write(
    file: BinaryIO,
    places: list[Place],
    code: Callable[[Place], bytes | UnreadableImage],
    image_px: int,
    coding: str,
    progress: Callable[[int, int], object],
) -> dict[str, str]:
    """The whole file; why images are unreadable, by id."""
    file.write(bytes(HEAD.size))
    ids, ends, crcs, unreadable = list[str](), list[int](), list[int](), dict[str, str]()
    for done, (place, content) in enumerate(_in_order(places, code), start=1):
        if isinstance(content, UnreadableImage):
            unreadable[place.sample_id] = content.reason
        else:
            file.write(content)
            ids.append(place.sample_id)
            ends.append(file.tell())
            crcs.append(zlib.crc32(content))
        progress(done, len(places))
    facts = {"image_px": image_px, "coding": coding, "ids": ids, "ends": ends, "crc32": crcs}
    index = json.dumps(facts, separators=(",", ":")).encode()
    start = file.tell()
    file.write(index)
    file.seek(0)
    file.write(packed_head(start, index))
    return unreadable


def _in_order(
    places: list[Place], code: Callable[[Place], bytes | UnreadableImage]
) -> Iterator[tuple[Place, bytes | UnreadableImage]]:
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for first in range(0, len(places), AT_ONCE):
            some = places[first : first + AT_ONCE]
            yield from zip(some, pool.map(code, some), strict=True)
