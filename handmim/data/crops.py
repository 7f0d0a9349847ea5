"""Unlabeled crops from any tree of images: no labels, no metadata, no class folders."""

import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data.datasets import copies, drawn_labels, files_digest
from handmim.data.keypoints import held_back_images
from handmim.data.samples import cut, whole_image
from handmim.images.decode import (
    FITS,
    MAX_MEGAPIXELS,
    ImageArray,
    UnreadableImage,
    not_too_long,
    read_bytes,
    read_image,
)
from handmim.images.files import ImageTree, find_images, leave_out_maps
from handmim.images.formats import printable
from handmim.types import CropSample, HandSample
from handmim.utils.arguments import at_least, one_of
from handmim.utils.findings import shown

log = logging.getLogger(__name__)

GROUPINGS = ("none", "folder")


def find_photos(
    root: Path,
    exclude: Sequence[str] = (),
    include_all: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> ImageTree:
    """The photos of a folder tree, and what is left out; `include_all` also takes masks, depth
    maps, and images of training runs. Raises: ValueError when there is no image."""
    tree = find_images(root, exclude, with_runs=include_all)
    if not include_all:
        leave_out_maps(tree, lambda name: read_bytes(root / name, max_megapixels), max_megapixels)
    return tree


def log_left_out(tree: ImageTree) -> None:
    """Log the files that are left out of a tree, and labelled benchmarks in it."""
    account = tree.account()
    if account is not None:
        log.log(logging.WARNING if tree.is_remarkable else logging.INFO, account)
    for text in (*labelled_benchmarks(tree), *tree.remarks):
        log.warning(text)


def labelled_benchmarks(tree: ImageTree) -> Iterator[str]:
    """A warning for each labelled dataset that is used as a plain folder."""
    for name, use, folder in tree.benchmarks:
        prefix = f"{folder}/" if folder else ""
        scored = sum(n.startswith(prefix) for n in tree.names)
        where = printable(str(tree.root))
        if scored:
            without = f"; data.train.exclude=['{prefix}*'] leaves them out" if folder else ""
            yield (
                f"{where} holds {name}, a labelled benchmark: {scored} of its evaluation images "
                f"would be seen in pretraining ({use} reads the training images only{without})"
            )
        elif folder:
            yield f"{where} holds {name}, a labelled dataset: {use} reads it with its labels"


def square(image: NDArray[np.uint8], side: int, fit: str) -> NDArray[np.uint8]:
    """An image as [side, side, 3]: "contain" keeps everything and continues the short sides by
    reflection, "cover" cuts the long ones."""
    image = not_too_long(image) if fit == "cover" else image
    height, width = image.shape[:2]
    scale = side / (max(height, width) if fit == "contain" else min(height, width))
    new = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, new, interpolation=interpolation) if (width, height) != new else image
    height, width = image.shape[:2]
    if fit == "cover":
        top, left = (height - side) // 2, (width - side) // 2
        return np.ascontiguousarray(image[top : top + side, left : left + side])
    down, right = side - height, side - width
    if not down and not right:
        return image
    pads = down // 2, down - down // 2, right // 2, right - right // 2
    return cv2.copyMakeBorder(image, *pads, cv2.BORDER_REFLECT)


def named_unreadable(reasons: Mapping[str, str], total: int) -> str:
    """A log line on images that are left out of `total`, from their reasons by name."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(printable(name))
    texts = [f"{shown(names, 10)} ({reason})" for reason, names in by_reason.items()]
    return f"skipped {len(reasons)} unreadable of {total} images: {'; '.join(texts)}"


class Crops(Dataset[CropSample | HandSample]):
    """Square crops by number: what a folder, a packed file and shards have in common.

    `fit` is "contain" (borders are reflected) or "cover" (centre square) for other shapes.
    `group_by` is "folder" when images of one folder show nearly the same hand (frames of a video),
    so that they are no negatives of each other; "none" otherwise. `crop_scale` is the side of a
    crop relative to the image's longer side, continued by reflection: above 1 for tight images.
    """

    def __init__(
        self, root: str | Path, image_px: int, fit: str, group_by: str, crop_scale: float = 1.0
    ) -> None:
        one_of("fit", fit, FITS)
        at_least(1, crop_scale=crop_scale)
        if fit == "cover" and crop_scale != 1:
            raise ValueError(f"crop_scale={crop_scale} requires fit=contain, got fit={fit}")
        self.crop_scale = crop_scale
        one_of("group_by", group_by, GROUPINGS)
        self.root, self.image_px, self.fit, self.group_by = Path(root), image_px, fit, group_by
        self.names: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> CropSample | HandSample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} crops")
        return self.sample(index)

    def sample(self, index: int) -> CropSample | HandSample:
        """The sample of a valid number."""
        raise NotImplementedError

    def crop(self, index: int, image: ImageArray, group: str | None = None) -> CropSample:
        """The crop of an image of any size."""
        name = self.names[index]
        if group is None and self.group_by == "folder":
            group = Path(name).parent.as_posix()
        if self.crop_scale == 1:
            crop = square(image, self.image_px, self.fit)
        else:
            crop = cut(image, whole_image(image, self.crop_scale, self.image_px), self.image_px)
        return CropSample(crop, sample_id=name, group=group)


def without_held_back(names: Sequence[str], root: Path, held_back: Mapping[str, Any]) -> list[str]:
    """The images whose groups are not held back; those that the annotations do not list stay.
    Raises: ValueError for other settings than those of `held_back_images`, or another folder."""
    known = inspect.signature(held_back_images).parameters
    if "annotations" not in held_back or not held_back.keys() <= known.keys():
        required = f"annotations, and perhaps {', '.join([*known][1:])}"
        raise ValueError(f"held_back must have {required}, got {sorted(held_back)}")
    path, is_held_back = held_back["annotations"], held_back_images(**held_back)
    found = {name: is_held_back.get(os.path.normpath(name)) for name in names}
    kept = [name for name in names if not found[name]]
    num = len(names) - len(kept)
    if not num:
        total, where = sum(is_held_back.values()), printable(str(root))
        text = f"none of the {total} images that {path} holds back is in {where}"
        raise ValueError(f"{text}: file_name is relative to this folder (data.held_back)")
    unknown = sum(value is None for value in found.values())
    text = "left out %d images of groups that %s holds back; %d of the others are not listed there"
    log.info(text, num, path, unknown)
    return kept


class CropFolder(Crops):
    """Every readable photo below a folder, as square crops; what is left out is named.

    Args:
        verify: decode every file once at the start, so that unreadable ones are left out.
        exclude: patterns of relative paths that are left out, such as "evaluation/*".
        include_all: also take masks and maps, and images of training runs.
        max_megapixels: larger images are refused before they are decoded.
        held_back: arguments of `keypoints.held_back_images`: images of these groups are left out.
        limit: a random choice of so many of the images, drawn by `limit_seed`; a smaller one is
            part of a larger one. Unreadable images are left out of it afterwards.
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
        exclude: Sequence[str] = (),
        include_all: bool = False,
        max_megapixels: float = MAX_MEGAPIXELS,
        held_back: Mapping[str, Any] | None = None,
        limit: int | None = None,
        limit_seed: int = 0,
        crop_scale: float = 1.0,
    ) -> None:
        super().__init__(root, image_px, fit, group_by, crop_scale)
        self.max_megapixels = max_megapixels
        tree = find_photos(self.root, exclude, include_all, max_megapixels)
        log_left_out(tree)
        if held_back is not None:
            tree.names = without_held_back(tree.names, self.root, held_back)
        if limit is not None:
            if not 1 <= limit <= len(tree.names):
                raise ValueError(f"limit must be null or 1 to {len(tree.names)}, got {limit}")
            drawn = drawn_labels(len(tree.names), limit, limit_seed)
            tree.names = [tree.names[i] for i in np.sort(drawn)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            checked = tree.names if verify else []
            found = zip(checked, pool.map(self._reason, checked), strict=True)
            reasons = {name: reason for name, reason in found if reason}
        self.unreadable = list(reasons)
        self.names = [name for name in tree.names if name not in reasons]
        where, skipped = printable(str(root)), named_unreadable(reasons, len(tree.names))
        if not self.names:
            raise ValueError(f"none of the images below {where} can be read: {skipped}")
        if reasons:
            log.warning(skipped)
        log.info("%d unlabeled images below %s", len(self.names), where)
        repeated, num = copies(self.root, self.names)
        if repeated:
            text = "%d of %d images that were compared below %s are copies of others: remove copies"
            log.warning(text, repeated, num, where)

    def _reason(self, name: str) -> str:
        try:
            self._read(name)
        except UnreadableImage as error:
            return error.reason
        return ""

    def _read(self, name: str) -> ImageArray:
        return read_image(
            f"{self.root}/{name}", self.image_px, self.fit, max_megapixels=self.max_megapixels
        )

    def fingerprint(self) -> str:
        """Digest of the files, wherever the folder lies."""
        return files_digest(self.root, self.names)

    def sample(self, index: int) -> CropSample:
        """The crop of a file."""
        return self.crop(index, self._read(self.names[index]))
