"""Masks, depth maps and segmentation maps among images, recognised by their pixels and names.

Images are judged in groups that one program wrote: those of one folder, one ending, and one word
for a map in their names (`0001_mask.png`). A few images of each group are looked at.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

SAMPLED = 8  # images of a group that are looked at
FEW = 4  # a smaller group is judged only where its name has a word for a map
SIDE = 96  # of the grid of pixels that is looked at
LOSSY = (".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif")
WORDS = re.compile(
    r"(?<![a-z])(masks?|seg|segm|segmentations?|segmasks?|labels?|depths?|disparity|disparities|"
    r"alphas?|mattes?|silhouettes?|normals?|trimaps?|parsing|instances?|semantics?|heatmaps?|gt|"
    r"annotations?)(?![a-z])"
)
MASK, DEPTH, FLAT, FEW_COLOURS, GREYSCALE, NO_BLUE, IMAGE = (
    "mask", "depth map", "one colour", "segmentation map", "greyscale map", "map of two numbers",
    "image",
)  # fmt: skip

Look = Callable[[str], NDArray[np.uint8] | None]


class Group(NamedTuple):
    """Images that are judged together."""

    folder: str
    ending: str
    word: str  # of `WORDS` in the path, or none

    @property
    def is_named(self) -> bool:
        """Whether a word for a map stands in the folder's or the file's name."""
        return bool(self.word)


def groups_of(names: Iterable[str]) -> dict[Group, list[str]]:
    """Images by folder, ending and word for a map."""
    groups: defaultdict[Group, list[str]] = defaultdict(list)
    words: dict[str, str] = {}
    for name in names:
        folder, file = os.path.split(name)
        stem, ending = os.path.splitext(file)
        if folder not in words:
            words[folder] = " ".join(WORDS.findall(folder.lower()))
        word = WORDS.findall(stem.lower())
        key = Group(folder, ending.lower(), " ".join([words[folder], *word]).strip())
        groups[key].append(name)
    return dict(groups)


def sampled(names: Sequence[str]) -> list[str]:
    """At most `SAMPLED` of the names, at even distances."""
    if len(names) <= SAMPLED:
        return list(names)
    return [names[i * (len(names) - 1) // (SAMPLED - 1)] for i in range(SAMPLED)]


def find_maps(names: Sequence[str], look: Look) -> dict[str, list[str]]:
    """Images that are masks or maps rather than photos, by kind.

    Args:
        names: relative paths of images.
        look: image of a name, [H, W, 3] uint8 RGB; None where it cannot be read.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for group, members in groups_of(names).items():
        if len(members) < FEW and not group.is_named:
            continue
        kinds = set()
        for name in sampled(members):
            image = look(name)
            if image is not None:
                kinds.add(kind_of(image, is_lossy=group.ending in LOSSY))
                if IMAGE in kinds:
                    break
        kinds.discard(FLAT)
        strong = kinds and kinds <= {MASK, DEPTH}
        if strong or (group.is_named and kinds and IMAGE not in kinds):
            found[kinds.pop() if len(kinds) == 1 else FEW_COLOURS].extend(members)
    return dict(found)


def kind_of(image: NDArray[np.uint8], *, is_lossy: bool) -> str:
    """What an image looks like: a photo, or a kind of map.

    Args:
        image: [H, W, 3] RGB.
        is_lossy: of a format whose compression changes single values.
    """
    height, width = image.shape[:2]
    grid = image[:: -(-height // SIDE), :: -(-width // SIDE)].reshape(-1, 3)
    low, high = grid.min(axis=0).astype(int), grid.max(axis=0).astype(int)
    if (high - low).max() <= 8:
        return FLAT
    if not is_lossy and not grid[:, 2].any():
        return DEPTH if _is_coded_depth(image) else NO_BLUE
    spread = grid.max(axis=1).astype(int) - grid.min(axis=1)
    if (spread <= 8).mean() >= 0.99:
        values = grid[:, 1].astype(int)
        bottom, top = values.min(), values.max()
        margin = (top - bottom) // 8
        near = (values <= bottom + margin) | (values >= top - margin)
        if top - bottom >= 64 and near.mean() >= 0.95:
            return MASK
        return GREYSCALE
    counts = np.bincount((grid >> 4).astype(int) @ np.array([256, 16, 1]), minlength=4096)
    if np.sort(counts)[-16:].sum() >= 0.97 * counts.sum() and _is_flat(image):
        return FEW_COLOURS
    return IMAGE


def _is_coded_depth(image: NDArray[np.uint8]) -> bool:
    """Whether red and green are the bytes of one distance, as HO-3D stores it: where red wraps
    around, the distance goes on."""
    red, coded = image[..., 0].astype(int), image[..., :2].astype(int) @ np.array([1, 256])
    wrapped = np.abs(np.diff(red, axis=1)) > 128
    steps = np.abs(np.diff(coded, axis=1))[wrapped]
    return bool(len(steps) and (steps < 128).mean() > 0.1)


def _is_flat(image: NDArray[np.uint8]) -> bool:
    """Whether most neighbouring pixels are equal, as within the regions of a map."""
    step = cv2.absdiff(image[:, 1:], image[:, :-1]).max(axis=2)
    return bool((step <= 4).mean() >= 0.85)
