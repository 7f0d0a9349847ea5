"""Unlabeled crops from any tree of pictures: no labels, no metadata, no class folders."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.contracts import CropSample
from handmim.data.decode import FITS, read_rgb
from handmim.data.fingerprint import files_digest
from handmim.render.background import PHOTO_SUFFIXES

log = logging.getLogger(__name__)

GROUPINGS = ("none", "folder")
SHOWN = 10  # unreadable files named in one log line


def list_pictures(root: Path) -> list[str]:
    """Paths of all pictures below `root`, relative and sorted; hidden files are left out, links
    followed once.

    Raises: ValueError when there is no folder or no picture.
    """
    if not root.is_dir():
        what = f"{root} is a file: data=packed?" if root.is_file() else f"no folder {root}"
        raise ValueError(f"{what} (data.root=DIR)")

    def walk(folder: str, seen: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in seen:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from walk(entry.path, seen | {real})
                elif entry.name.lower().endswith(PHOTO_SUFFIXES):
                    yield os.path.relpath(entry.path, root)

    names = sorted(walk(str(root), frozenset()))
    if not names:
        raise ValueError(
            f"no {'/'.join(s[1:] for s in PHOTO_SUFFIXES)} picture below {root} (data.root=DIR)"
        )
    return names


def square(image: NDArray[np.uint8], side: int, fit: str) -> NDArray[np.uint8]:
    """A picture as [side, side, 3].

    Args:
        image: [H, W, 3].
        side: wanted size in pixels.
        fit: "contain" keeps everything and continues the short sides by reflection; "cover" cuts
            the long ones.
    """
    height, width = image.shape[:2]
    scale = side / (max(height, width) if fit == "contain" else min(height, width))
    new = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, new, interpolation=how) if (width, height) != new else image
    height, width = image.shape[:2]
    if fit == "cover":
        top, left = (height - side) // 2, (width - side) // 2
        return np.ascontiguousarray(image[top : top + side, left : left + side])
    down, right = side - height, side - width
    if not down and not right:
        return image
    pads = down // 2, down - down // 2, right // 2, right - right // 2
    return cv2.copyMakeBorder(image, *pads, cv2.BORDER_REFLECT)


def check_grouping(group_by: str) -> None:
    """Raises: ValueError for a grouping that there is not."""
    if group_by not in GROUPINGS:
        raise ValueError(
            f"group_by must be one of {GROUPINGS}, got {group_by!r} (data.train.group_by)"
        )


def group_of(name: str, group_by: str) -> str | None:
    """Group of a picture, by its relative path."""
    return Path(name).parent.as_posix() if group_by == "folder" else None


def named_unreadable(names: Sequence[str], total: int) -> str:
    """A log line on pictures that are left out."""
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"skipped {len(names)} unreadable of {total} pictures: {shown}"


class CropFolder(Dataset[CropSample]):
    """Every readable jpg, png and webp below a folder, as square crops.

    Args:
        root: folder; read recursively.
        image_px: side of the crops.
        fit: "contain" (nothing is lost, borders are reflected) or "cover" (centre square).
        verify: decode every file once at the start, so that unreadable ones are known, named and
            left out.
        group_by: "folder" when pictures of one folder show nearly the same hand (frames of a
            video), so that they are no negatives of each other; "none" otherwise.
    Raises: ValueError when nothing readable is found.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_px: int = 256,
        fit: str = "contain",
        verify: bool = True,
        group_by: str = "none",
    ) -> None:
        if fit not in FITS:
            raise ValueError(f"fit must be one of {FITS}, got {fit!r} (data.train.fit)")
        check_grouping(group_by)
        self.group_by = group_by
        self.root, self.image_px, self.fit = Path(root), image_px, fit
        found = list_pictures(self.root)
        self.unreadable = self._find_unreadable(found) if verify else []
        bad = set(self.unreadable)
        self.names = [name for name in found if name not in bad]
        if bad:
            log.warning(named_unreadable(self.unreadable, len(found)))
        if not self.names:
            raise ValueError(
                f"none of the {len(found)} pictures below {root} can be read (data.root)"
            )
        log.info("%d unlabeled pictures below %s", len(self.names), root)

    def _find_unreadable(self, names: list[str]) -> list[str]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            readable = pool.map(lambda name: read_rgb(self.root / name) is not None, names)
        return [name for name, ok in zip(names, readable, strict=True) if not ok]

    def fingerprint(self) -> str:
        """Digest of the files, wherever the folder lies."""
        return files_digest(self.root, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> CropSample:
        name = self.names[index]
        image = read_rgb(self.root / name, self.image_px, self.fit)
        if image is None:
            raise ValueError(
                f"{self.root / name} cannot be read (any more); data.train.verify=true finds "
                "such files"
            )
        return CropSample(
            image=square(image, self.image_px, self.fit),
            sample_id=name,
            group=group_of(name, self.group_by),
        )
