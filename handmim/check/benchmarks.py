"""FreiHAND and HO-3D: folders, lists, images, masks, and the checks that training runs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.data import label_checks as checks
from handmim.data import label_files as files
from handmim.data.freihand import FIELDS as READ
from handmim.data.freihand import SOURCE, Labels, check_freihand_labels, note_images
from handmim.data.ho3d import image_of, note_files, note_metas, read_frames
from handmim.hand.conventions import project_px
from handmim.hand.io import HandArrays
from handmim.hand.model import HandModel
from handmim.images.decode import UnreadableImage, read_image
from handmim.images.formats import printable
from handmim.utils.findings import Finding, Level, Notes, shown, spread

NUM_THREADS = 8  # that decode images
FREIHAND_COUNTS = {"training": (32560,), "evaluation": (3960,)}
FIELDS: dict[str, tuple[int, ...]] = {**READ, "scale": ()}  # the reader has no use for scale
GIVEN = {"training": tuple(FIELDS), "evaluation": ("K", "scale")}
SIDE_PX = 224
MASKED = 128  # masks are lossy JPEG
MARGIN = 0.012  # of the longer side, by which masks grow
SHARE_GOOD, SHARE_BAD, LEAST_LEAD = 0.8, 0.6, 0.1  # of joints on masks
# Version 3's own script names 78297 training frames, its list has 83325.
HO3D_COUNTS: Mapping[int, Mapping[str, tuple[int, ...]]] = {
    2: {"train": (66034,), "evaluation": (11524,)},
    3: {"train": (83325, 78297), "evaluation": (20137,)},
}
SIZE_PX = 640, 480
SUFFIX = {2: ".png", 3: ".jpg"}
LARGEST_MISS_M = 0.01  # ground truth against the given wrist


@dataclass
class Tree:
    """An unpacked dataset and the findings on it."""

    root: Path
    key: str  # config key that names the root
    notes: Notes
    num_checked: int  # samples of each part that are checked closely
    full: bool  # decode all images
    size_px: tuple[int, int]  # width and height for which labels are; of a rendered set, its own
    metadata: dict[str, Any] | None = None  # of a rendered set
    model: HandModel | None = None  # to pose labels with

    def open(
        self, required: Sequence[str], lists: Mapping[str, str], hand: HandArrays | None
    ) -> list[str]:
        """The parts, training first, whose list is there; notes missing files and folders, damaged
        metadata, and why labels are not posed with the hand model."""
        paths = {name: self.root / name for name in required}
        missing = [n for n, p in paths.items() if not (p.is_file() if p.suffix else p.is_dir())]
        vital, marker = next(iter(lists.items()))
        nested = [p.parent for p in self.root.glob(f"*/{marker}")] if self.root.is_dir() else []
        text = f"missing: {shown(missing, 8)}" if missing else "every folder and list is there"
        fix = f"name the inner folder: {self.key}={nested[0]}" if nested else ""
        bad: Level = "error" if any(n.startswith(vital) for n in missing) else "warning"
        self.notes.judge(not missing, "layout", f"{self.root}: {text}", fix, bad=bad)
        parts = [part for part, name in lists.items() if (self.root / name).is_file()]
        if not parts:
            return []
        with self.notes.guard("facts", "synthesize the set again"):
            self.metadata = files.read_facts(self.root)
            if self.metadata:
                width, (genuine, height) = int(self.metadata["scene"]["image_px"]), self.size_px
                self.size_px = width, width * height // genuine
        if hand is None:
            text = "poses and joints are not checked: the hand model could not be read"
            self.notes.warning("hand", text, "mend hand.path first")
        elif hand.side == "left":
            text = f"{hand.name} is a left hand, the dataset's are right"
            self.notes.error("hand", text, "hand=mano hand.path=MANO_RIGHT.pkl")
        else:
            fix = "choose the hand that the set was rendered from (hand, hand.path)"
            with self.notes.guard("hand", fix):
                files.check_made_with(self.root, hand)
                self.notes.ok("hand", f"labels are posed again with {hand.name}")
                self.model = HandModel(hand)
        return parts

    def has_truth(self, source: str) -> bool:
        """Whether the released ground truth of the evaluation is there; half of it is odd."""
        names = [f"evaluation_{name}.json" for name in files.GROUND_TRUTH]
        missing = [name for name in names if not (self.root / name).is_file()]
        text = "the ground truth of the evaluation is there: scores are computed here"
        if missing:
            text = f"no {' and '.join(missing)}: predictions can be submitted, not scored"
        self.notes.judge(len(missing) != 1, "truth", text, source, bad="warning")
        return not missing

    def check_count(self, part: str, num: int, genuine: Sequence[int], fix: str = "") -> None:
        """Compare the number of samples with that of the genuine or rendered set."""
        expected = genuine
        if self.metadata:
            expected = (self.metadata["num_eval" if part == "evaluation" else "num"],)
        text = f"{part}: {num} samples, the whole set has {' or '.join(map(str, expected))}"
        self.notes.judge(num in expected, "counts", text, fix, bad="warning")

    def check_sizes(self, part: str, paths: Sequence[Path]) -> None:
        """Decode images, and compare their size with that which labels are for."""
        images = {f"{path.parents[1].name}/{path.name}": path for path in paths}
        sizes = Counter(decoded_sizes(self.notes, images, part).values())
        found = ", ".join(f"{n} of {w} x {h} px" for (w, h), n in sizes.items())
        text = f"{part}: {len(paths)} images decoded: {found or 'none'}"
        fix = f"labels are for {self.size_px[0]} x {self.size_px[1]} px: {self.notes.fix}"
        self.notes.judge(set(sizes) <= {self.size_px}, "size", text, fix)


def decoded_sizes(
    notes: Notes, images: Mapping[str, Path], part: str, fix: str = "", bad: Level = "error"
) -> dict[str, tuple[int, ...]]:
    """Width and height, by name, of images all of whose pixels are decoded; notes the others."""

    def size_of(path: Path) -> tuple[int, ...] | str:
        try:
            return read_image(path).shape[1::-1]
        except UnreadableImage as error:
            return error.reason

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = dict(zip(images, pool.map(size_of, images.values()), strict=True))
    reasons = {name: size for name, size in found.items() if isinstance(size, str)}
    damaged = [f"{printable(name)} ({reason})" for name, reason in reasons.items()]
    bad = bad if len(damaged) < len(images) else "error"
    notes.count(damaged, len(images), "decode", f"decoded images of {part} are damaged", fix, bad)
    return {name: size for name, size in found.items() if not isinstance(size, str)}


def read_rows(
    path: Path, shape: tuple[int, ...], ids: Iterable[int]
) -> tuple[int, NDArray[np.float64]]:
    """Number of entries of a JSON list, and some of them by ascending index: [k, *shape]. One entry
    at a time is in memory."""
    chosen, count, rows = set(ids), 0, []
    for index, entry in enumerate(files.read_entries(path, shape)):
        count = index + 1
        if index in chosen:
            rows.append(entry.copy())
    return count, np.array(rows).reshape(-1, *shape)


def check_freihand(
    root: Path, hand: HandArrays | None, num_checked: int, *, full: bool = False
) -> list[Finding]:
    """Findings on the folder with training/ and training_K.json; `num_checked` samples of each part
    are checked closely, `full` decodes all images."""
    notes = Notes("freihand", SOURCE)
    tree = Tree(root, "freihand", notes, num_checked, full, (SIDE_PX, SIDE_PX))
    required = [f"{part}/rgb" for part in FREIHAND_COUNTS]
    required += [f"{part}_{name}.json" for part, names in GIVEN.items() for name in names]
    for part in tree.open(required, {part: f"{part}_K.json" for part in FREIHAND_COUNTS}, hand):
        with notes.guard(part):
            _check_freihand_part(tree, part)
    return notes.findings


def _check_freihand_part(tree: Tree, part: str) -> None:
    notes, folder = tree.notes, tree.root / part / "rgb"
    lengths, labels = dict[str, int](), dict[str, NDArray[np.float64]]()
    ids = np.zeros(0, np.int64)
    for name, shape in FIELDS.items():
        path = tree.root / f"{part}_{name}.json"
        if path.is_file():
            with notes.guard("json"):
                if not lengths:
                    ids = spread(read_rows(path, shape, ())[0], tree.num_checked)
                lengths[name], labels[name] = read_rows(path, shape, ids.tolist())
    if not lengths:
        return
    least, num = min(lengths.values()), max(lengths.values())
    text = f"{part}: entries {', '.join(f'{k} {n}' for k, n in lengths.items())}"
    notes.judge(0 < least == num, "lists", text, f"the lists of one part belong together: {SOURCE}")
    if not least:
        return
    ids = ids[: min(map(len, labels.values()))]
    labels = {name: rows[: len(ids)] for name, rows in labels.items()}
    tree.check_count(part, num, FREIHAND_COUNTS[part], f"{SOURCE}, unless a part is meant")
    if folder.is_dir():
        with notes.guard("images"):
            versions = files.VERSIONS if part == "training" else files.VERSIONS[:1]
            every = {v: np.arange(num) + num * i for i, v in enumerate(versions)}
            names = set(files.file_names(folder))
            note_images(notes, folder, names, every, num * len(versions), "error")
        masks = folder.with_name("mask")
        if part == "training" and masks.is_dir():
            names = set(files.file_names(masks))
            gone = [f"{i:08d}.jpg" for i in range(num) if f"{i:08d}.jpg" not in names]
            notes.count(gone, num, "masks", "masks are missing", bad="warning")
        with notes.guard("size"):
            # Each sample before another background.
            image_ids = ids + num * (np.arange(len(ids)) % len(versions))
            image_ids = np.arange(num * len(versions)) if tree.full else image_ids
            paths = [folder / f"{i:08d}.jpg" for i in image_ids]
            tree.check_sizes(part, [p for p in paths if p.is_file()])
    if part == "evaluation":
        tree.has_truth("unpack FreiHAND_pub_v2_eval.zip beside it")
    # Images of another size are noted already.
    compare = None if notes.failed("size") else partial(_fall_on_masks, tree, part, ids)
    check_freihand_labels(notes, part, labels, tree.model, tree.size_px, compare)


def _fall_on_masks(
    tree: Tree, part: str, ids: NDArray[np.int64], is_checked: NDArray[np.bool_], labels: Labels
) -> bool:
    """Whether joints [n, 21, 3] fall on the masks of their samples, the checked ones of `ids`, and
    less so on other masks; True also without masks."""
    rows, masks = [], []
    for row, item in enumerate(ids[is_checked]):
        path = tree.root / part / "mask" / f"{item:08d}.jpg"
        with suppress(UnreadableImage):
            masks.append(cv2.extractChannel(read_image(path), 0) > MASKED)
            rows.append(row)
    if not rows:
        return True
    own, others = shares_in_masks(project_px(labels["xyz"][rows], labels["K"][rows]), masks)
    good = own >= SHARE_BAD and (len(rows) == 1 or own - others >= LEAST_LEAD)
    text = f"{part}: {own:.0%} of the joints fall on their hand's mask by K"
    text += f" ({others:.0%} on other hands' masks, {len(rows)} images)"
    fix = f"{part}_K.json, {part}_xyz.json and the images do not belong together: {SOURCE}"
    bad: Level = "warning" if good else "error"
    tree.notes.judge(good and own >= SHARE_GOOD, "mask", text, fix, bad=bad)
    return good


def shares_in_masks(
    points_px: NDArray[np.floating], masks: list[NDArray[np.bool_]]
) -> tuple[float, float]:
    """Mean shares of points [n, P, 2] that fall on n masks [H, W]: on the own one, and on those of
    other samples, 0 without others."""
    shares = np.zeros((len(masks), len(masks)))
    for column, mask in enumerate(masks):
        height, width = mask.shape
        margin = 1 + 2 * round(MARGIN * max(mask.shape))
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((margin, margin), np.uint8)) > 0
        # Far and undefined points count as outside.
        px = np.nan_to_num(points_px, nan=-1.0).clip(-1, max(mask.shape))
        at = np.floor(px).astype(int)
        inside = ((at >= 0) & (at < [width, height])).all(axis=2)
        at = at.clip(0, [width - 1, height - 1])
        shares[:, column] = (inside & grown[at[..., 1], at[..., 0]]).mean(axis=1)
    others = shares[~np.eye(len(masks), dtype=bool)]
    return float(np.diag(shares).mean()), float(others.mean()) if len(others) else 0.0


def check_ho3d(
    root: Path, version: int, hand: HandArrays | None, num_checked: int, *, full: bool = False
) -> list[Finding]:
    """Findings on the folder with train.txt, meant to be version 2 or 3; `num_checked` frames of
    each part are checked closely, `full` decodes all images."""
    notes = Notes(f"ho3d-v{version}", f"unpack HO3D_v{version}.zip again")
    tree = Tree(root, f"ho3d_v{version}", notes, num_checked, full, SIZE_PX)
    lists = {part: f"{part}.txt" for part in HO3D_COUNTS[version]}
    frames: dict[str, list[str]] = {}
    for part in tree.open([*lists.values(), *lists], lists, hand):
        with notes.guard("list"):
            frames[part] = read_frames(root / lists[part])
    for part in frames:
        with notes.guard(part):
            _check_ho3d_part(tree, version, part, frames[part])
    if len(frames) == len(lists):
        train, test = ({frame.split("/")[0] for frame in listed} for listed in frames.values())
        recordings = sorted({files.take_of(s) for s in train} & {files.take_of(s) for s in test})
        text = f"{len(train)} and {len(test)} sequences share no recording"
        fix = f"the evaluation is trained on: {notes.fix}"
        if same := sorted(train & test):
            text = f"sequences are in both lists: {shown(same)}"
        elif recordings:
            text = f"recordings filmed by other cameras are in both lists: {shown(recordings)}"
            fix = "results flatter on these sequences; leave them out of train.txt for a clean test"
        notes.judge(not recordings, "takes", text, fix, bad="error" if same else "warning")
    return notes.findings


def _check_ho3d_part(tree: Tree, version: int, part: str, frames: list[str]) -> None:
    notes = tree.notes
    twice = [frame for frame, count in Counter(frames).items() if count > 1]
    notes.count(twice, len(frames), "list", f"frames of {part}.txt are listed twice")
    others = [v for v in HO3D_COUNTS if v != version and len(frames) in HO3D_COUNTS[v][part]]
    fix = f"this is version {others[0]}: ho3d_v{others[0]}=DIR" if others else ""
    tree.check_count(part, len(frames), HO3D_COUNTS[version][part], fix)
    note_files(notes, tree.root, part, frames)
    chosen = {frames[i]: int(i) for i in spread(len(frames), tree.num_checked)}
    with notes.guard("size"):
        listed = frames if tree.full else list(chosen)
        paths = [p for p in (image_of(tree.root, part, frame) for frame in listed) if p]
        suffixes, expected = Counter(path.suffix for path in paths), SUFFIX[version]
        text = f"{part}: images are {', '.join(f'{n} {s}' for s, n in suffixes.items()) or 'none'}"
        text += f", those of version {version} are {expected}"
        fix = f"this is version {5 - version}: ho3d_v{5 - version}={tree.root}"
        notes.judge(set(suffixes) <= {expected}, "version", text, fix)
        tree.check_sizes(part, paths)
    metas = note_metas(notes, tree.root / part, list(chosen), tree.model, tree.size_px)
    if part == "evaluation":
        with notes.guard("truth"):
            by_index = {chosen[frame]: meta for frame, meta in metas.items()}
            _check_ground_truth(tree, len(frames), by_index)


def _check_ground_truth(tree: Tree, num: int, metas: Mapping[int, dict[str, Any]]) -> None:
    """The released ground truth of the evaluation, where it is: its count, order and wrists."""
    notes, indices = tree.notes, sorted(metas)
    if not tree.has_truth("both files were released, see the README of HO-3D's repository"):
        return
    (num_joints, xyz), (num_verts, verts) = (
        read_rows(tree.root / f"evaluation_{name}.json", shape, indices)
        for name, shape in files.GROUND_TRUTH.items()
    )
    good = num_joints == num_verts == num
    text = f"{num} frames in evaluation.txt, ground truth of {num_joints} and {num_verts} meshes"
    fix = "the ground truth is of another version of HO-3D: take the one of this version"
    notes.judge(good, "truth", text, fix)
    if not good or not metas:
        return
    where = "evaluation_xyz.json"
    xyz = checks.settle_order(notes, checks.settle_unit(notes, xyz, where), "ho3d", where)
    xyz = checks.settle_axes(notes, xyz, checks.OPENGL, where)
    checks.settle_axes(notes, verts[:1], checks.OPENGL, "evaluation_verts.json")
    given = [np.asarray(metas[i].get("handJoints3D"), np.float64).ravel()[:3] for i in indices]
    if any(len(wrist) != 3 for wrist in given):
        return
    off_m = float(np.median(np.linalg.norm(xyz[:, 0] - np.stack(given), axis=1)))
    text = f"wrists of the ground truth are {off_m * 1e3:.2f} mm off those in the metas (median)"
    fix = "the ground truth is in another order than evaluation.txt, or of another version"
    notes.judge(off_m <= LARGEST_MISS_M, "truth", text, fix)
