"""HO-3D: files, lists, version; what the metas say is in `ho3d_labels`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handmim.data.ho3d import image_of, missing_files, read_frames
from handmim.data.ho3d_checks import (
    check_evaluation,
    check_training,
)
from handmim.data.label_checks import read_facts
from handmim.data.label_files import take_of
from handmim.doctor.ho3d_evaluation import check_truth
from handmim.doctor.rendered import usable_hand
from handmim.doctor.sampling import decoded_sizes, missing_of
from handmim.hand.arrays import HandArrays
from handmim.hand.model import HandModel
from handmim.utils.findings import Finding, Notes, shown, spread
from handmim.utils.unpickle import UnsafePickleError, load_pickle

PARTS = ("train", "evaluation")
# Version 3's own script says 78297 training frames, its list has 83325.
COUNTS: Mapping[int, Mapping[str, tuple[int, ...]]] = {
    2: {"train": (66034,), "evaluation": (11524,)},
    3: {"train": (83325, 78297), "evaluation": (20137,)},
}
SIZE_PX = (640, 480)
SUFFIX = {2: ".png", 3: ".jpg"}
CONTACT = "handVertContact"  # only training metas of version 3 have it
Meta = dict[str, Any]


@dataclass(frozen=True)
class _Tree:
    root: Path
    version: int
    facts: dict[str, Any] | None  # of a rendered set

    @property
    def prefix(self) -> str:
        return f"ho3d-v{self.version}"

    @property
    def source(self) -> str:
        return f"unpack HO3D_v{self.version}.zip again"

    @property
    def size_px(self) -> tuple[int, int]:
        side = int(self.facts["scene"]["image_px"]) if self.facts else 0
        return (side, side * 3 // 4) if self.facts else SIZE_PX

    def meta(self, part: str, frame: str) -> Path:
        sequence, name = frame.split("/")
        return self.root / part / sequence / "meta" / f"{name}.pkl"


def examine_ho3d(
    root: Path, version: int, hand: HandArrays | None, num_checked: int, *, full: bool = False
) -> list[Finding]:
    """Findings on the unpacked dataset.

    Args:
        root: folder with train/, evaluation/, train.txt and evaluation.txt.
        version: 2 or 3, which it is meant to be.
        hand: model of the annotations; None where it could not be read.
        num_checked: frames looked at closely, of each part.
        full: decode the images of all frames.
    """
    notes, tree = Notes(), _Tree(root, version, None)
    if not _layout(notes, tree):
        return notes.findings
    with notes.guard(f"{tree.prefix}-facts", "synthesize the set again"):
        tree = _Tree(root, version, read_facts(root))
    model = usable_hand(notes, tree.prefix, root, hand)
    lists: dict[str, list[str]] = {}
    for part in PARTS:
        if (root / f"{part}.txt").is_file():
            with notes.guard(f"{tree.prefix}-list", tree.source):
                lists[part] = read_frames(root / f"{part}.txt")
    for part, frames in lists.items():
        with notes.guard(f"{tree.prefix}-{part}", tree.source):
            _examine_part(notes, tree, part, frames, model, num_checked, full)
    if len(lists) == 2:
        _takes(notes, tree, lists)
    return notes.findings


def _layout(notes: Notes, tree: _Tree) -> bool:
    wanted = [name for part in PARTS for name in (f"{part}.txt", part)]
    missing = missing_of(tree.root, wanted)
    nested = [p.parent for p in tree.root.glob("*/train.txt")] if tree.root.is_dir() else []
    fix = f"name the inner folder: ho3d_v{tree.version}={nested[0]}" if nested else tree.source
    notes.judge(
        not missing,
        f"{tree.prefix}-layout",
        f"{tree.root}: " + (f"missing: {shown(missing, 8)}" if missing else "all parts are there"),
        fix,
        bad="error" if "train.txt" in missing or "train" in missing else "warning",
    )
    return any((tree.root / f"{part}.txt").is_file() for part in PARTS)


def _examine_part(
    notes: Notes,
    tree: _Tree,
    part: str,
    frames: list[str],
    model: HandModel | None,
    num_checked: int,
    full: bool,
) -> None:
    twice = [frame for frame, count in Counter(frames).items() if count > 1]
    text = f"{part}.txt: {len(frames)} frames"
    text += f", {len(twice)} of them listed twice: {shown(twice)}" if twice else ", each once"
    notes.judge(not twice, f"{tree.prefix}-list", text, tree.source)
    _counts(notes, tree, part, len(frames))
    _files(notes, tree, part, frames)
    chosen = {int(i): frames[i] for i in spread(len(frames), num_checked)}
    with notes.guard(f"{tree.prefix}-size", tree.source):
        _pictures(notes, tree, part, frames if full else list(chosen.values()))
    metas = _metas(notes, tree, part, chosen)
    if part == "train":
        _contact(notes, tree, list(metas.values()))
        check_training(notes, tree.prefix, metas, chosen, model, tree.size_px, tree.source)
        return
    with notes.guard(f"{tree.prefix}-box", tree.source):
        check_evaluation(notes, tree.prefix, metas, tree.size_px, tree.source)
    with notes.guard(f"{tree.prefix}-truth", tree.source):
        check_truth(notes, tree.prefix, tree.root, len(frames), metas)


def _counts(notes: Notes, tree: _Tree, part: str, num: int) -> None:
    wanted = COUNTS[tree.version][part]
    whose = f"HO-3D version {tree.version} has"
    if tree.facts:
        wanted = (tree.facts["num" if part == "train" else "num_eval"],)
        whose = "it was rendered with"
    others = [v for v, counts in COUNTS.items() if v != tree.version and num in counts[part]]
    text = f"{part}: {num} listed frames"
    text += "" if num in wanted else f", {whose} {' or '.join(map(str, wanted))}"
    fix = f"this is version {others[0]}: ho3d_v{others[0]}=DIR" if others else tree.source
    notes.judge(num in wanted, f"{tree.prefix}-counts", text, fix, bad="warning")


def _files(notes: Notes, tree: _Tree, part: str, frames: list[str]) -> None:
    missing = missing_files(tree.root, part, frames)
    text = f"{part}: " + (
        f"{len(missing)} files of listed frames are missing: {shown(missing)}"
        if missing
        else "picture and meta of every listed frame are there"
    )
    notes.judge(not missing, f"{tree.prefix}-files", text, tree.source)


def _pictures(notes: Notes, tree: _Tree, part: str, frames: list[str]) -> None:
    paths = [p for p in (image_of(tree.root, part, frame) for frame in frames) if p]
    suffixes = Counter(path.suffix for path in paths)
    wanted = SUFFIX[tree.version]
    other = next(v for v in SUFFIX if v != tree.version)
    notes.judge(
        set(suffixes) <= {wanted},
        f"{tree.prefix}-version",
        f"{part}: pictures are {', '.join(f'{n} {s}' for s, n in suffixes.items()) or 'missing'}, "
        f"those of version {tree.version} are {wanted}",
        f"this looks like version {other}: ho3d_v{other}={tree.root}",
    )
    decoded = decoded_sizes(paths)
    sizes = Counter(size for size in decoded if size is not None)
    damaged = [
        f"{path.parents[1].name}/{path.name}"
        for path, size in zip(paths, decoded, strict=True)
        if size is None
    ]
    text = ", ".join(f"{n} of {w} x {h} px" for (w, h), n in sizes.items()) or "none"
    notes.judge(
        set(sizes) <= {tree.size_px},
        f"{tree.prefix}-size",
        f"{part}: {len(paths)} images decoded: {text}",
        f"labels are for {tree.size_px[0]} x {tree.size_px[1]} px: {tree.source}",
    )
    if damaged:
        text = f"{part}: {len(damaged)} of {len(paths)} images decoded are damaged: "
        notes.error(f"{tree.prefix}-decode", text + shown(damaged), tree.source)


def _metas(notes: Notes, tree: _Tree, part: str, frames: dict[int, str]) -> dict[int, Meta]:
    """Those that can be read, by their frame's place in the list."""
    metas: dict[int, Meta] = {}
    for place, frame in frames.items():
        path = tree.meta(part, frame)
        if not path.is_file():
            continue  # told already
        with notes.guard(f"{tree.prefix}-meta", tree.source):
            try:
                meta = load_pickle(path)
            except UnsafePickleError as error:
                notes.error(f"{tree.prefix}-pickle", str(error), f"delete it and {tree.source}")
                continue
            if not isinstance(meta, dict):
                raise ValueError(f"{path} holds a {type(meta).__name__}, wanted a dict")
            metas[place] = meta
    text = f"{part}: {len(metas)} of {len(frames)} metas looked at are plain data"
    notes.ok(f"{tree.prefix}-meta", text)
    return metas


def _contact(notes: Notes, tree: _Tree, metas: list[Meta]) -> None:
    if not metas:
        return
    share = sum(CONTACT in meta for meta in metas) / len(metas)
    wanted = 1.0 if tree.version == 3 else 0.0
    notes.judge(
        share == wanted,
        f"{tree.prefix}-version",
        f"{share:.0%} of the metas have {CONTACT}, in version {tree.version} {wanted:.0%} do",
        f"this looks like version {5 - tree.version}: ho3d_v{5 - tree.version}={tree.root}",
    )


def _takes(notes: Notes, tree: _Tree, lists: dict[str, list[str]]) -> None:
    train, test = ({frame.split("/")[0] for frame in lists[part]} for part in PARTS)
    takes = {take_of(s) for s in train} & {take_of(s) for s in test}
    name, same = f"{tree.prefix}-takes", sorted(train & test)
    if same:
        text = f"sequences are in both lists: {shown(same)}"
        notes.error(name, text, f"the evaluation is trained on: {tree.source}")
    elif takes:
        text = f"takes filmed by other cameras are in both lists: {shown(sorted(takes))}"
        fix = "figures flatter on these sequences; leave them out of train.txt for a clean test"
        notes.warning(name, text, fix)
    else:
        notes.ok(name, f"{len(train)} and {len(test)} sequences share no take")
