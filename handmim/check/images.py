"""Folders of unlabeled crops, and photos with keypoints."""

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from handmim.check.tree import decoded_sizes
from handmim.data.annotation_checks import check_annotations
from handmim.data.annotations import FORM, read_annotations
from handmim.data.crops import find_photos, labelled_benchmarks
from handmim.data.keypoints import check_groups, missing_images
from handmim.hand.skeleton import NUM_JOINTS
from handmim.images.files import ENDINGS
from handmim.images.formats import printable
from handmim.utils.findings import Finding, Notes, shown, spread

TINY_PX = 48  # shorter side, below which there is nothing to learn at 224 px
MAX_HASHED = 20_000
MANY = 0.01  # share of duplicates that is worth a warning


def check_crops(root: Path, num_checked: int) -> list[Finding]:
    """Findings on a tree of unlabeled images, `num_checked` of which are decoded: what
    `data=folder` reads and leaves out."""
    notes = Notes("crops", "look at the files named")
    fix = f"name a folder with image files ({' '.join(ENDINGS)}): crops=DIR"
    with notes.guard("images", fix):
        tree = find_photos(root)
        names, account = tree.names, tree.account()
        notes.ok("images", f"{len(names)} images below {printable(str(root))}")
        if account is not None:
            bad = f"{notes.fix}; pretraining does not read them"
            notes.judge(not tree.is_remarkable, "left-out", account, bad, bad="warning")
        for text in labelled_benchmarks(tree):
            notes.warning("benchmark", text, "read it as a labelled dataset, or exclude it")
        for text in tree.remarks:
            notes.warning("maps", text, "name the folder of the photos: crops=DIR")
        with notes.guard("size"):
            _check_crops(notes, root, [names[i] for i in spread(len(names), num_checked)])
        with notes.guard("duplicates"):
            _duplicates(notes, root, names)
    return notes.findings


def _check_crops(notes: Notes, root: Path, names: list[str]) -> None:
    fix = "they are left out of training; delete them or copy them again"
    paths = [root / name for name in names]
    sizes = decoded_sizes(notes, paths, names, fix=fix, bad="warning")
    sides = {name: min(size) for name, size in sizes.items()}
    if sides:
        tiny = [printable(name) for name, side in sides.items() if side < TINY_PX]
        text = f"shorter sides of {min(sides.values())} to {max(sides.values())} px, {len(tiny)} "
        text += f"below {TINY_PX} px" + (f": {shown(tiny)}" if tiny else "")
        fix = "leave them out: they are enlarged to data.image_px and teach nothing"
        notes.judge(not tiny, "size", text, fix, bad="warning")


def _duplicates(notes: Notes, root: Path, names: list[str]) -> None:
    """Only files of one size can be the same, so few are read."""
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for i in spread(len(names), MAX_HASHED):
        by_size[(root / names[i]).stat().st_size].append(names[i])
    first: dict[bytes, str] = {}
    pairs = []
    for name in (n for same in by_size.values() if len(same) > 1 for n in same):
        digest = hashlib.blake2b((root / name).read_bytes(), digest_size=16).digest()
        if first.setdefault(digest, name) != name:
            pairs.append(f"{name} = {first[digest]}")
    num = min(len(names), MAX_HASHED)
    text = f"{len(pairs)} of {num} files are copies of others"
    text += f": {shown(pairs)}" if pairs else ""
    fix = "copies count double in training: delete them"
    notes.judge(len(pairs) <= MANY * num, "duplicates", text, fix, bad="warning")


def check_keypoints(
    root: Path, annotations: Path, num_checked: int, *, full: bool = False
) -> list[Finding]:
    """Findings on photos with 21 keypoints in a COCO-style JSON file, all of which is checked;
    `num_checked` images, or all, are decoded."""
    notes = Notes("keypoints", FORM)
    with notes.guard("file"):
        content = read_annotations(annotations, notes)
        notes.ok("count", f"{len(content.hands)} hands of {NUM_JOINTS} keypoints")
        missing = missing_images(content, root)
        text = f"{len(content.images)} images in the file, {len(missing)} with hands are not below "
        text += f"{root}" + (f": {shown(missing)}" if missing else "")
        fix = "keypoints.root is the folder that file_name starts from"
        notes.judge(not missing, "images", text, fix)
        check_groups(content, "subject", notes)
        if not missing and content.hands:
            check_annotations(content, root, notes)
            if not notes.failed("decode"):
                used = sorted({hand.image for hand in content.hands})
                names = [content.images[i]["file_name"] for i in used]
                names = names if full else [names[i] for i in spread(len(names), num_checked)]
                fix = "take them out of the annotations, or copy them again"
                decoded_sizes(notes, [root / name for name in names], names, fix=fix)
        scores = [hand.scores for hand in content.hands if hand.scores is not None]
        if scores:
            text = f"{len(scores)} of {len(content.hands)} hands have confidences of their "
            notes.ok("scores", f"{text}keypoints, {np.mean(scores):.2f} on average")
    return notes.findings
