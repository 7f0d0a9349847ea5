"""Unlabeled images for pretraining: what `data=folder` reads and leaves out, and of what size."""

import hashlib
import os
from collections import defaultdict
from pathlib import Path

from handmim.data.crops import find_photos, labelled_benchmarks
from handmim.images.decode import UnreadableImage, read_image
from handmim.images.files import ENDINGS
from handmim.images.formats import printable
from handmim.utils.findings import Finding, Notes, shown, spread

TINY_PX = 48  # shorter side, below which there is nothing to learn at 224 px
MOST_HASHED = 20_000
MANY = 0.01  # share of duplicates that is worth a warning


def examine_crops(root: Path, num_checked: int) -> list[Finding]:
    """Findings on a tree of images.

    Args:
        root: folder.
        num_checked: images that are decoded.
    """
    notes = Notes()
    fix = f"name a folder with image files ({' '.join(ENDINGS)}): crops=DIR"
    with notes.guard("crops-pictures", fix):
        tree = find_photos(root)
        names, account = tree.names, tree.account()
        notes.ok("crops-pictures", f"{len(names)} images below {printable(str(root))}")
        if account is not None:
            bad = "look at the files named; pretraining does not read them"
            notes.judge(not tree.is_remarkable, "crops-left-out", account, bad, bad="warning")
        for text in labelled_benchmarks(tree):
            notes.warning("crops-benchmark", text, "read it as a labelled dataset, or exclude it")
        for text in tree.remarks:
            notes.warning("crops-maps", text, "name the folder of the photos: crops=DIR")
        with notes.guard("crops-size", "look at the files named"):
            _decode(notes, root, [names[i] for i in spread(len(names), num_checked)])
        with notes.guard("crops-duplicates", "look at the files named"):
            _duplicates(notes, root, names)
    return notes.findings


def _decode(notes: Notes, root: Path, names: list[str]) -> None:
    damaged, tiny, sides = list[str](), list[str](), list[int]()
    for name in names:
        try:
            image = read_image(root / name)
        except UnreadableImage as error:
            damaged.append(f"{printable(name)} ({error.reason})")
            continue
        sides.append(min(image.shape[:2]))
        if sides[-1] < TINY_PX:
            tiny.append(printable(name))
    notes.judge(
        not damaged,
        "crops-unreadable",
        f"{len(damaged)} of {len(names)} images looked at cannot be read"
        + (f": {shown(damaged)}" if damaged else ""),
        "they are left out of training; delete them or copy them again",
        bad="warning" if sides else "error",
    )
    if sides:
        text = f"shorter sides of {min(sides)} to {max(sides)} px, {len(tiny)} below {TINY_PX} px"
        text += f": {shown(tiny)}" if tiny else ""
        fix = "leave them out: they are enlarged to data.image_px and teach nothing"
        notes.judge(not tiny, "crops-size", text, fix, bad="warning")


def _duplicates(notes: Notes, root: Path, names: list[str]) -> None:
    """Only files of one size can be the same, so few are read."""
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for i in spread(len(names), MOST_HASHED):
        by_size[os.path.getsize(root / names[i])].append(names[i])
    first: dict[bytes, str] = {}
    pairs = []
    for same in by_size.values():
        for name in same if len(same) > 1 else ():
            digest = hashlib.blake2b((root / name).read_bytes(), digest_size=16).digest()
            if digest in first:
                pairs.append(f"{name} = {first[digest]}")
            else:
                first[digest] = name
    looked = min(len(names), MOST_HASHED)
    notes.judge(
        len(pairs) <= MANY * looked,
        "crops-duplicates",
        f"{len(pairs)} of {looked} files are copies of others"
        + (f": {shown(pairs)}" if pairs else ""),
        "copies count double in training: delete them",
        bad="warning",
    )
