"""HO-3D: folders, lists, version, images, and its metas by the checks that training runs."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from handmim.check.tree import Tree, read_rows
from handmim.data.benchmark_checks import check_ho3d_evaluation, check_ho3d_training
from handmim.data.ho3d import image_of, missing_files, read_frames, read_meta
from handmim.data.label_checks import OPENGL, settle_axes, settle_order, settle_unit
from handmim.data.label_files import GROUND_TRUTH, take_of
from handmim.hand.arrays import HandArrays
from handmim.hand.model import HandModel
from handmim.utils.findings import Finding, Notes, shown, spread
from handmim.utils.unpickle import UnsafePickleError

PARTS = ("train", "evaluation")
# Version 3's own script names 78297 training frames, its list has 83325.
COUNTS: Mapping[int, Mapping[str, tuple[int, ...]]] = {
    2: {"train": (66034,), "evaluation": (11524,)},
    3: {"train": (83325, 78297), "evaluation": (20137,)},
}
WIDTH_PX = 640
SUFFIX = {2: ".png", 3: ".jpg"}
LARGEST_MISS_M = 0.01  # ground truth against the given wrist


def check_ho3d(
    root: Path, version: int, hand: HandArrays | None, num_checked: int, *, full: bool = False
) -> list[Finding]:
    """Findings on the unpacked dataset, the folder with train.txt, meant to be version 2 or 3.

    `num_checked` frames of each part are checked closely; `full` decodes all images.
    """
    notes = Notes(f"ho3d-v{version}", f"unpack HO3D_v{version}.zip again")
    tree = Tree(root, f"ho3d_v{version}", notes)
    tree.check_layout([n for part in PARTS for n in (f"{part}.txt", part)], "train", "train.txt")
    parts = [part for part in PARTS if (root / f"{part}.txt").is_file()]
    if not parts:
        return notes.findings
    tree.read_metadata()
    model = tree.usable_hand(hand)
    lists: dict[str, list[str]] = {}
    for part in parts:
        with notes.guard("list"):
            lists[part] = read_frames(root / f"{part}.txt")
    for part, frames in lists.items():
        with notes.guard(part):
            _check_part(tree, version, part, frames, model, num_checked, full)
    if len(lists) == 2:
        _check_recordings(tree, lists)
    return notes.findings


def _check_part(
    tree: Tree,
    version: int,
    part: str,
    frames: list[str],
    model: HandModel | None,
    num_checked: int,
    full: bool,
) -> None:
    twice = [frame for frame, count in Counter(frames).items() if count > 1]
    text = f"{part}.txt: {len(frames)} frames"
    text += f", {len(twice)} of them listed twice: {shown(twice)}" if twice else ", each once"
    tree.notes.judge(not twice, "list", text)
    others = [v for v in COUNTS if v != version and len(frames) in COUNTS[v][part]]
    fix = f"this is version {others[0]}: ho3d_v{others[0]}=DIR" if others else ""
    name = f"HO-3D version {version}"
    tree.check_count(part, len(frames), COUNTS[version][part], name, fix)
    missing = missing_files(tree.root, part, frames)
    text = "image and meta of every listed frame are there"
    if missing:
        text = f"{len(missing)} files of listed frames are missing: {shown(missing)}"
    tree.notes.judge(not missing, "files", f"{part}: {text}")
    width_px = tree.side_px(WIDTH_PX)
    size_px = width_px, width_px * 3 // 4
    chosen = {frames[i]: int(i) for i in spread(len(frames), num_checked)}
    with tree.notes.guard("size"):
        _check_images(tree, version, part, size_px, frames if full else list(chosen))
    metas = _metas(tree, part, chosen)
    if part == "train":
        check_ho3d_training(tree.notes, metas, model, size_px)
        return
    with tree.notes.guard("box"):
        check_ho3d_evaluation(tree.notes, metas, size_px)
    with tree.notes.guard("truth"):
        by_index = {chosen[frame]: meta for frame, meta in metas.items()}
        _check_ground_truth(tree, len(frames), by_index)


def _check_images(
    tree: Tree, version: int, part: str, size_px: tuple[int, int], frames: list[str]
) -> None:
    paths = [p for p in (image_of(tree.root, part, frame) for frame in frames) if p]
    suffixes, expected = Counter(path.suffix for path in paths), SUFFIX[version]
    text = f"{part}: images are {', '.join(f'{n} {s}' for s, n in suffixes.items()) or 'missing'}, "
    text += f"those of version {version} are {expected}"
    fix = f"this is version {5 - version}: ho3d_v{5 - version}={tree.root}"
    tree.notes.judge(set(suffixes) <= {expected}, "version", text, fix)
    tree.check_sizes(part, paths, size_px)


def _metas(tree: Tree, part: str, frames: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Those that can be read, by their frame."""
    metas, notes = dict[str, dict[str, Any]](), tree.notes
    for frame in frames:
        with notes.guard("meta"), suppress(FileNotFoundError):  # noted already
            try:
                metas[frame] = read_meta(tree.root, part, frame)
            except UnsafePickleError as error:
                notes.error("pickle", str(error), f"delete it and {notes.fix}")
    notes.ok("meta", f"{part}: {len(metas)} metas checked are plain data")
    return metas


def _check_recordings(tree: Tree, lists: dict[str, list[str]]) -> None:
    train, test = ({frame.split("/")[0] for frame in lists[part]} for part in PARTS)
    recordings = {take_of(s) for s in train} & {take_of(s) for s in test}
    if same := sorted(train & test):
        text = f"sequences are in both lists: {shown(same)}"
        tree.notes.error("takes", text, f"the evaluation is trained on: {tree.notes.fix}")
    elif recordings:
        text = f"recordings filmed by other cameras are in both lists: {shown(sorted(recordings))}"
        fix = "results flatter on these sequences; leave them out of train.txt for a clean test"
        tree.notes.warning("takes", text, fix)
    else:
        tree.notes.judge(
            True, "takes", f"{len(train)} and {len(test)} sequences share no recording"
        )


def _check_ground_truth(tree: Tree, num: int, metas: Mapping[int, dict[str, Any]]) -> None:
    """The released ground truth of the evaluation, where it is: its count, order and wrists."""
    notes = tree.notes
    paths = {key: tree.root / f"evaluation_{key}.json" for key in GROUND_TRUTH}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        fix = "both files of the ground truth were released, see the README of HO-3D's repository"
        text = f"no {' and '.join(missing)}: predictions can be submitted, not scored ({fix})"
        notes.judge(len(missing) == 2, "truth", text, fix, bad="warning")
        return
    indices = sorted(metas)
    (num_joints, xyz), (num_verts, verts) = (
        read_rows(path, GROUND_TRUTH[key], indices) for key, path in paths.items()
    )
    good = num_joints == num_verts == num
    text = f"evaluation.txt has {num} frames, the ground truth has {num_joints} joints and "
    fix = "the ground truth is of another version of HO-3D: take the one of this version"
    notes.judge(good, "truth", f"{text}{num_verts} meshes", fix)
    if not good or not metas:
        return
    where = "evaluation_xyz.json"
    xyz = settle_unit(notes, xyz, where)
    xyz = settle_order(notes, xyz, "ho3d", where)
    xyz = settle_axes(notes, xyz, OPENGL, where)
    settle_axes(notes, verts[:1], OPENGL, "evaluation_verts.json")
    given = [np.asarray(metas[i].get("handJoints3D"), np.float64).ravel()[:3] for i in indices]
    if any(len(wrist) != 3 for wrist in given):
        return
    off_m = float(np.median(np.linalg.norm(xyz[:, 0] - np.stack(given), axis=1)))
    text = f"wrists of the ground truth are {off_m * 1e3:.2f} mm off those in the metas (median)"
    fix = "the ground truth is in another order than evaluation.txt, or of another version"
    notes.judge(off_m <= LARGEST_MISS_M, "truth", text, fix)
