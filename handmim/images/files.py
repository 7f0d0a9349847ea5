"""Image files of a folder tree, and an account of what is left out of it.

Masks, depth maps and segmentation maps are recognised by their pixels and names in groups of one
folder, ending, word (`0001_mask.png`) and affix (`0001.png`, `0001_m.png`).
"""

import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.images.decode import MAX_MEGAPIXELS, UnreadableImage, decode_image
from handmim.images.formats import format_of, printable, stored_numbers
from handmim.utils.findings import shown, spread

ENDINGS = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm",
    ".pgm", ".avif", ".jp2",
)  # fmt: skip
# Files beside images that nobody expects to be read.
NOTES = {
    ".json", ".txt", ".md", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".py", ".pkl", ".npy",
    ".npz", ".mat", ".log", ".toml", ".ini", ".sha256", ".md5", ".db", ".bin", ".obj", ".ply",
    "no ending",
}  # fmt: skip
# Folders of thumbnails and deleted files that systems put beside images, in small letters.
SERVICE = {"@eadir", "#recycle", "$recycle.bin", "lost+found", "__macosx"}
IMAGE_FOLDERS = ("images", "pictures")  # the second of older runs
RUN_FILES = ("run.json", "scalars.jsonl")  # one of them lies beside config.yaml
LABELLED = (  # files and folders of a labelled dataset, its name, how it is read
    ({"training_K.json", "training"}, "FreiHAND", "data=freihand"),
    ({"evaluation_K.json", "evaluation"}, "FreiHAND", "data=freihand"),
    ({"train.txt", "evaluation.txt", "evaluation"}, "HO-3D", "data=ho3d_v3 or data=ho3d_v2"),
)
EVALUATION = "evaluation"  # their folder of images that are scored
# Of maps among images.
SAMPLED = 8  # images of a group that are decoded
FEW = 4  # a smaller group is judged only where its name has a word for a map
SIDE = 96  # of the grid of pixels that is analysed
LOSSY = ("JPEG", "WEBP", "AVIF")
MOST_LABELS, MOST_BYTE_LABEL = 32, 64  # numbers of one image; the largest of 8 bits, 255 apart
# Of neighbours in greyscale photos of hands, 0.37 to 0.97 differ by at most 4 (95 % below 0.88),
# at most 0.61 are equal; of the shades of a photo, at most 0.18 are unit vectors.
FLAT_SHARE, UNIT_SHARE, SHADES = 0.85, 0.6, 32
VOID_SHARE, GAP = 0.005, 0.1  # of pixels without a distance; of the range of distances
WORDS = re.compile(
    r"(?<![a-z])(masks?|seg|segm|segmentations?|segmasks?|labels?|depths?|disp|disparity|"
    r"disparities|alphas?|mattes?|silhouettes?|normals?|trimaps?|parsing|instances?|semantics?|"
    r"heatmaps?|gt|annotations?|(?:seg|label|depth|disparity|normal)maps?)(?![a-z])"
)
AFFIX = re.compile(r"^[A-Za-z]+[-_. ]|[-_. ][A-Za-z]+$")
MASK, DEPTH, FLAT, FEW_COLOURS, LABELS, NORMALS, GREYSCALE, NO_BLUE, IMAGE = (
    "mask", "depth map", "one colour", "segmentation map", "map of labels", "map of normals",
    "greyscale map", "map of two numbers", "image",
)  # fmt: skip
PLURALS = {LABELS: "maps of labels", NORMALS: "maps of normals"}
STRONG = {MASK, DEPTH, LABELS, NORMALS}  # recognised whatever their names

Array = NDArray[np.generic]


@dataclass
class ImageTree:
    """What a folder tree holds."""

    root: Path
    names: list[str] = field(default_factory=list)  # relative paths of image files, sorted
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by reason
    endings: Counter[str] = field(default_factory=Counter)  # of other files
    # Labelled datasets in it, or around it: name, overrides that read it with its labels, and
    # folder of its evaluation images, relative to the tree ("" is all of it).
    benchmarks: list[tuple[str, str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # further sentences for the user

    def leave_out(self, reason: str, names: Iterable[str]) -> None:
        """Move images from `names` to `left_out`."""
        if gone := set(names):
            self.left_out[reason] += sorted(gone)
            self.names = [name for name in self.names if name not in gone]

    def account(self) -> str | None:
        """What was left out in one line; None where nothing was."""
        parts = []
        for ending, num in self.endings.most_common():
            hint = "" if ending in NOTES else " (not readable here)"
            if ending.startswith(ENDINGS):  # .jpg_large, .jpeg_, .png~
                hint = " (an image? rename it)"
            parts.append(f"{num} x {ending}{hint}")
        for reason, names in self.left_out.items():
            parts.append(f"{len(names)} x {reason}: {shown(list(map(printable, names)))}")
        if not parts:
            return None
        number = self.endings.total() + sum(map(len, self.left_out.values()))
        total, where = number + len(self.names), printable(str(self.root))
        return f"{number} of {total} files below {where} left out: {'; '.join(parts)}"

    @property
    def is_remarkable(self) -> bool:
        """Whether more was left out than notes beside the images."""
        return bool(self.left_out or set(self.endings) - NOTES)


def find_images(root: Path, exclude: Sequence[str] = (), *, with_runs: bool = False) -> ImageTree:
    """All image files below a folder, by ending in any case; every folder is visited once, links
    are followed, names that begin with a dot left out, FIFOs, devices and sockets never opened.

    `exclude` are patterns of relative paths; `with_runs` takes the images of training runs too.
    Raises: ValueError when there is no folder or no image.
    """
    if not os.path.isdir(root):
        what = f"no folder {root}"
        if os.path.isfile(root):
            what = f"{root} is a file, a folder is required (data=packed reads packed crops)"
        raise ValueError(printable(what))
    tree, inside = ImageTree(root), root.resolve()
    for above in list(inside.parents)[:3]:  # of the evaluation folder that the tree is, or lies in
        if inside.relative_to(above).parts[0] == EVALUATION and not tree.benchmarks:
            with suppress(OSError):
                tree.benchmarks += _labelled(set(os.listdir(above)), "")
    seen: set[str] = set()
    folders, links = deque([""]), deque[str]()  # what lies in the tree goes before links to it
    while folders or links:
        prefix = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(os.path.join(root, prefix))
        if real in seen:
            continue
        seen.add(real)
        found, run = _visit(tree, prefix, folders, links), root / prefix
        run = run.parent if run.name in IMAGE_FOLDERS else run
        has = [os.path.isfile(run / name) for name in ("config.yaml", *RUN_FILES) if found]
        if any(has[1:]) and has[0] and not with_runs:
            tree.left_out["output of a run"] += found
        else:
            tree.names += found
    tree.names.sort()
    excluded = [n for n in tree.names if any(fnmatch(n, pattern) for pattern in exclude)]
    tree.leave_out("excluded (data.train.exclude)", excluded)
    if not tree.names:
        text = f"no image file ({' '.join(ENDINGS)}) below {printable(str(root))}"
        account = tree.account()
        raise ValueError(f"{text}{f': {account}' if account else ''}")
    return tree


def _visit(tree: ImageTree, prefix: str, folders: deque[str], links: deque[str]) -> list[str]:
    """Images in one folder; folders and links to folders are appended, the rest is noted."""
    images: list[str] = []
    try:
        with os.scandir(os.path.join(tree.root, prefix)) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError:
        tree.left_out["folder that cannot be opened"].append(prefix or ".")
        return images
    for entry in entries:
        name, ending = entry.name, os.path.splitext(entry.name)[1].lower()
        if name.startswith("."):
            continue
        path, is_folder, is_file = os.path.join(prefix, name), False, False
        with suppress(OSError):  # a loop of links
            is_folder, is_file = entry.is_dir(), entry.is_file()
        if not is_folder and not is_file:
            is_broken = entry.is_symlink() and not os.path.exists(entry.path)
            tree.left_out["broken link" if is_broken else "no regular file"].append(path)
        elif is_folder and name.lower() in SERVICE:
            tree.left_out["folder of the system"].append(path)
        elif is_folder:
            (links if entry.is_symlink() else folders).append(path)
        elif ending in ENDINGS:
            images.append(path)
        else:
            tree.endings[_counted_as(entry.path, ending)] += 1
    inside = os.path.join(prefix, EVALUATION)
    tree.benchmarks += _labelled({entry.name for entry in entries}, inside)
    return images


def _labelled(names: set[str], evaluation: str) -> list[tuple[str, str, str]]:
    """The labelled dataset that these names belong to."""
    return [(name, use, evaluation) for marks, name, use in LABELLED if marks <= names][:1]


def _counted_as(path: str, ending: str) -> str:
    if ending:
        return printable(ending)
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        if kind := format_of(file.read(32)):
            return f"{kind} image without an ending"
    return "no ending"


def groups_of(names: Iterable[str]) -> dict[tuple[str, str, str, str], list[str]]:
    """Images that are judged together, by folder, ending, words for a map in their path, and affix
    where another file has the same name without or with another."""
    based = [(name, _base(name)) for name in names]
    num_of = Counter(base for _, base in based)
    groups = defaultdict(list)
    for name, base in based:
        folder, file = os.path.split(name)
        stem, ending = os.path.splitext(file)
        word = " ".join([*_words(folder), *_words(stem)])
        affix = "".join(AFFIX.findall(stem)) if num_of[base] > 1 else ""
        groups[folder, ending.lower(), word, affix].append(name)
    return dict(groups)


def _base(name: str) -> str:
    folder, slash, file = name.rpartition(os.sep)
    stem = file.rpartition(".")[0]
    return folder + slash + (stem if stem.isdigit() else AFFIX.sub("", stem))


@lru_cache(maxsize=1000)
def _words(name: str) -> list[str]:
    """Words for a map, also in `depthMap` and `SegmentationClass`."""
    return WORDS.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def leave_out_maps(
    tree: ImageTree, read: Callable[[str], bytes], max_megapixels: float = MAX_MEGAPIXELS
) -> None:
    """Leave images that are maps rather than photos out of a tree, unless it holds nothing else;
    `read` gives the content of a file, of which a few of each group are decoded."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for (_, _, word, _), members in groups_of(tree.names).items():
        if len(members) < FEW and not word:
            continue
        kinds = set[str]()
        for i in spread(len(members), SAMPLED):
            name = members[i]
            try:
                raw = read(name)
                image = decode_image(raw, name, max_megapixels=max_megapixels)
            except UnreadableImage:
                continue
            kinds.add(kind_of(image, stored_numbers(raw), is_lossy=format_of(raw) in LOSSY))
            if IMAGE in kinds:
                break
        kinds.discard(FLAT)
        if kinds and (kinds <= STRONG or (word and IMAGE not in kinds)):
            found[kinds.pop() if len(kinds) == 1 else FEW_COLOURS].extend(members)
    if found and sum(map(len, found.values())) == len(tree.names):
        them = " and ".join(PLURALS.get(kind, f"{kind}s") for kind in found)
        where = printable(str(tree.root))
        text = f"all {len(tree.names)} images below {where} look like {them}, no photos"
        tree.remarks.append(text)
        return
    for kind, names in found.items():
        tree.leave_out(f"{kind} (data.train.include_all=true keeps them)", names)


def kind_of(image: NDArray[np.uint8], numbers: Array | None = None, *, is_lossy: bool) -> str:
    """Kind of an RGB image [H, W, 3]: a photo, or a kind of map. `numbers` [H, W] are those that
    the file stores before they are scaled for the eye; `is_lossy` formats change single values."""
    height, width = image.shape[:2]
    rows = image[:: -(-height // SIDE), :: -(-width // SIDE)]
    grid = rows.reshape(-1, 3)
    spread = grid.max(axis=1).astype(int) - grid.min(axis=1)
    if numbers is None and not is_lossy and not spread.any():
        numbers = image[..., 0]
    if numbers is not None:
        if _are_labels(numbers):
            return LABELS
        if numbers.dtype.itemsize > 1 and _are_distances(numbers):
            return DEPTH
    low, high = grid.min(axis=0).astype(int), grid.max(axis=0).astype(int)
    if (high - low).max() <= 8:
        return FLAT
    if not is_lossy and not grid[:, 2].any():
        return DEPTH if _is_coded_depth(image) else NO_BLUE
    if (spread <= 8).mean() >= 0.99:
        values = grid[:, 1].astype(int)
        bottom, top = values.min(), values.max()
        margin = (top - bottom) // 8
        near = (values <= bottom + margin) | (values >= top - margin)
        upper = rows[..., 1] > (bottom + top) / 2
        same = (upper[:, 1:] == upper[:, :-1]).mean()
        if is_lossy and top - bottom >= 64 and near.mean() >= 0.99 and same >= FLAT_SHARE:
            return MASK  # with noise about the border of two regions
        if not _is_flat(image):
            return IMAGE
        return MASK if top - bottom >= 64 and near.mean() >= 0.95 else GREYSCALE
    if _are_normals(grid[spread > 8]):
        return NORMALS
    counts = np.bincount((grid >> 4).astype(int) @ np.array([256, 16, 1]), minlength=4096)
    if np.sort(counts)[-16:].sum() >= 0.97 * counts.sum() and _is_flat(image):
        return FEW_COLOURS
    return IMAGE


def _are_labels(numbers: Array) -> bool:
    """Whether few whole numbers fill regions: 0 and 1, 0 and 38, ids of persons times 1000."""
    height, width = numbers.shape
    used = np.unique(numbers[:: -(-height // SIDE), :: -(-width // SIDE)])
    if not 1 < len(used) <= MOST_LABELS or (used != np.rint(used)).any():
        return False
    largest = max(used[used != 255], default=0)
    if numbers.dtype == np.uint8 and not 0 < largest < MOST_BYTE_LABEL:
        return False
    return bool((numbers[:, 1:] == numbers[:, :-1]).mean() >= FLAT_SHARE)


def _are_distances(numbers: Array) -> bool:
    """Whether numbers lie away from the one that stands for "not measured", or floats from 0."""
    values = np.nan_to_num(numbers.astype(np.float64), posinf=0.0, neginf=0.0)
    for void in (values.min(), values.max()):
        rest = values[values != void]
        if len(rest):
            low, high = rest.min(), rest.max()
            gap = max(low - void, void - high)
            away = gap >= GAP * (high - low) and high - low >= GAP * high
            if away and len(rest) <= (1 - VOID_SHARE) * values.size:
                return True
    low, high = values.min(), values.max()
    metres = numbers.dtype.kind == "f" and 1 < high <= 16
    return bool(metres and low >= GAP * (high - low) >= GAP * GAP * high)


def _are_normals(colours: NDArray[np.uint8]) -> bool:
    """Whether colours [n, 3] of pixels are unit vectors in -1 .. 1; one of each shade counts, so
    that no backdrop decides."""
    shades = np.unique(colours >> 3, axis=0, return_index=True)[1]
    lengths = np.linalg.norm(colours[shades] / 127.5 - 1, axis=1)
    return len(shades) >= SHADES and bool((abs(lengths - 1) < 0.05).mean() >= UNIT_SHARE)


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
    return bool((step <= 4).mean() >= FLAT_SHARE)
