"""Writing packed crops (`handmim.data.packed`) from a tree of pictures, or tar files of them."""

import json
import logging
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2

from handmim.data.crops import list_pictures, named_unreadable, square
from handmim.data.decode import FITS, decode_rgb, jpeg_head
from handmim.data.packed import CODINGS, HEAD, packed_head
from handmim.render.background import PHOTO_SUFFIXES

log = logging.getLogger(__name__)

AT_ONCE = 256  # pictures in memory


class Place(NamedTuple):
    """Where a picture lies."""

    sample_id: str
    path: Path
    start: int = 0  # within a tar file
    size: int = -1  # -1: to the end

    def content(self) -> bytes | None:
        """The picture's file, None where it cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError:
            return None


def find_pictures(source: Path) -> list[Place]:
    """Pictures of a tree, or of a tar file or a folder of them, in a fixed order.

    Raises: ValueError when there are none, for a folder with both kinds, or for a tar file that is
        compressed or broken.
    """
    if not source.exists():
        raise ValueError(f"no such file or folder: {source}")
    tars = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    if source.is_dir() and not tars:
        return [Place(name, source / name) for name in list_pictures(source)]
    if source.is_dir() and _has_pictures(source):
        raise ValueError(
            f"{source} holds pictures beside {tars[0].name}: put the tar files in a folder of "
            "their own, or unpack them"
        )
    found: list[Place] = []
    for path in tars:
        try:
            with tarfile.open(path, "r:") as tar:
                found += [
                    Place(f"{path.stem}/{member.name}", path, member.offset_data, member.size)
                    for member in tar
                    if member.isfile() and member.name.lower().endswith(PHOTO_SUFFIXES)
                ]
        except (tarfile.TarError, OSError) as error:
            raise ValueError(
                f"{path} is no uncompressed tar file (gunzip it first?) and no folder: {error}"
            ) from error
    if not found:
        raise ValueError(f"no {'/'.join(s[1:] for s in PHOTO_SUFFIXES)} picture in {source}")
    return found


def _has_pictures(folder: Path) -> bool:
    try:
        return bool(list_pictures(folder))
    except ValueError:
        return False


def _coded(place: Place, image_px: int, fit: str, coding: str, quality: int) -> bytes | None:
    content = place.content()
    if content is None:
        return None
    image = decode_rgb(content, image_px, fit)
    if image is None:
        return None
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
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[str]:
    """Write all readable pictures as square crops into one file, which appears whole or not at all.

    Args:
        source: a tree of pictures, a tar file of them, or a folder of such files.
        target: file to write.
        image_px, fit: of the crops, as `crops.CropFolder` makes them.
        coding: "jpeg", or "raw" pixels, which take no time to decode and ten times the space.
        quality: of JPEGs, 1 to 100; files that are such crops already are kept as they are.
        overwrite: replace what is there.
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
    places = find_pictures(source)
    code = partial(_coded, image_px=image_px, fit=fit, coding=coding, quality=quality)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial_file.open("wb") as file:
            unreadable = _write(file, places, code, image_px, coding, progress)
            file.flush()
            os.fsync(file.fileno())
        if len(unreadable) == len(places):
            raise ValueError(f"none of the {len(places)} pictures of {source} can be read")
        partial_file.replace(target)
    finally:
        with suppress(OSError):
            partial_file.unlink(missing_ok=True)
    if unreadable:
        log.warning(named_unreadable(unreadable, len(places)))
    return unreadable


def _write(
    file: BinaryIO,
    places: list[Place],
    code: Callable[[Place], bytes | None],
    image_px: int,
    coding: str,
    progress: Callable[[int, int], object],
) -> list[str]:
    """The whole file; ids of what is unreadable."""
    file.write(bytes(HEAD.size))
    ids, ends, crcs, unreadable = list[str](), list[int](), list[int](), list[str]()
    for done, (place, content) in enumerate(_in_order(places, code), start=1):
        if content is None:
            unreadable.append(place.sample_id)
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
    places: list[Place], code: Callable[[Place], bytes | None]
) -> Iterator[tuple[Place, bytes | None]]:
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for first in range(0, len(places), AT_ONCE):
            some = places[first : first + AT_ONCE]
            yield from zip(some, pool.map(code, some), strict=True)
