"""Unlabeled pictures for pretraining."""

import hashlib
import os
from collections import defaultdict
from pathlib import Path

from handmim.data.crops import list_pictures
from handmim.data.decode import read_rgb
from handmim.utils.findings import Finding, Notes, shown, spread

TINY_PX = 48  # shorter side, below which there is nothing to learn at 224 px
MOST_HASHED = 20_000
MANY = 0.01  # share of duplicates that is worth a warning


def examine_crops(root: Path, num_checked: int) -> list[Finding]:
    """Findings on a tree of pictures.

    Args:
        root: folder.
        num_checked: pictures that are decoded.
    """
    notes = Notes()
    with notes.guard("crops-pictures", "name a folder with jpg, png or webp files: crops=DIR"):
        names = list_pictures(root)
        notes.ok("crops-pictures", f"{len(names)} pictures below {root}")
        with notes.guard("crops-size", "look at the files named"):
            _decode(notes, root, [names[i] for i in spread(len(names), num_checked)])
        with notes.guard("crops-duplicates", "look at the files named"):
            _duplicates(notes, root, names)
    return notes.findings


def _decode(notes: Notes, root: Path, names: list[str]) -> None:
    damaged, tiny, sides = [], [], []
    for name in names:
        picture = read_rgb(root / name)
        if picture is None:
            damaged.append(name)
            continue
        sides.append(min(picture.shape[:2]))
        if sides[-1] < TINY_PX:
            tiny.append(name)
    notes.judge(
        not damaged,
        "crops-unreadable",
        f"{len(damaged)} of {len(names)} pictures looked at cannot be decoded"
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
