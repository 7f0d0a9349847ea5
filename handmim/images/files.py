"""Image files of a folder tree, and an account of what is left out of it. No pixels are decoded."""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from handmim.images.formats import format_of, printable, shown

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


class Benchmark(NamedTuple):
    """A labelled dataset found in a tree, or around it."""

    name: str
    use: str  # overrides that read it with its labels
    evaluation: str  # folder of its evaluation images, relative to the tree; "" is all of it


@dataclass
class ImageTree:
    """What a folder tree holds."""

    root: Path
    names: list[str] = field(default_factory=list)  # relative paths of image files, sorted
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by reason
    endings: Counter[str] = field(default_factory=Counter)  # of other files
    benchmarks: list[Benchmark] = field(default_factory=list)
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
            parts.append(f"{len(names)} x {reason}: {shown(names, 3)}")
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


def _labelled(names: set[str], evaluation: str) -> list[Benchmark]:
    """The labelled dataset that these names belong to."""
    known = [(name, use) for marks, name, use in LABELLED if marks <= names]
    return [Benchmark(name, use, evaluation) for name, use in known[:1]]


def _counted_as(path: str, ending: str) -> str:
    if ending:
        return printable(ending)
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        if kind := format_of(file.read(32)):
            return f"{kind} image without an ending"
    return "no ending"
