"""COCO-style keypoint files: read, checked entry by entry, and turned into arrays.

`annotation_checks` looks at what the numbers mean. Errors are findings, so that the doctor reports
all of them; `load_annotations` refuses the file for any.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.data.hand_sides import KNOWN, SideReader
from handmim.hand.skeleton import NUM_JOINTS
from handmim.utils.findings import Notes, shown
from handmim.utils.json_files import read_json

FORM = "data/README.md shows the form of the file"
LARGEST = 1e6  # of a coordinate, in px or m; no image and no scene has more
WHOLE_BODY = ("lefthand_kpts", "righthand_kpts")
Array = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Hand:
    """One labelled hand.

    Args:
        entry: name in messages.
        image: row of `images`.
        keypoints: [21, 3] px and visibility; zeros where that is not positive.
        is_right: its side.
        joints: [21, 3] metres, x right, y down, z away from the camera.
        joints_valid: [21], both or neither.
        scores: [21] confidences of the keypoints in [0, 1].
        K: [3, 3] px.
        category: what it shows.
    """

    entry: str
    image: int
    keypoints: Array
    is_right: bool
    joints: Array | None = None
    joints_valid: NDArray[np.bool_] | None = None
    scores: Array | None = None
    K: Array | None = None
    category: Any = None


@dataclass(frozen=True)
class Annotations:
    """Content of one file.

    Args:
        images: checked entries of `images`.
        hands: labelled hands in the file's order.
    """

    images: list[Row]
    hands: list[Hand]


class _Faults:
    """Faults of entries by kind: each kind becomes one finding."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, name: str, text: str, fix: str = FORM) -> None:
        self.found[f"keypoints-{name}", fix].append(text)

    def note(self) -> None:
        for (name, fix), texts in self.found.items():
            count = f"{len(texts)} entries, the first: " if len(texts) > 3 else ""
            self.notes.error(name, count + "; ".join(texts[:3]), fix)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def numbers(value: Any, shapes: Sequence[tuple[int, ...]]) -> Array | str:
    """A list of numbers, or of equally long lists of them, as an array; null becomes NaN.

    Args:
        value: of a JSON file.
        shapes: allowed ones.
    Returns: the array, or in a few words what came instead.
    """
    if not isinstance(value, list):
        return f"got {_short(value)}"
    is_nested = bool(value) and all(isinstance(row, list) for row in value)
    lengths = {len(row) for row in value} if is_nested else {0}
    flat = [x for row in value for x in row] if is_nested else value
    shape = (len(value), *lengths) if is_nested else (len(value),)
    if len(lengths) > 1 or shape not in shapes:
        came = " x ".join(map(str, shape)) if len(lengths) == 1 else "unequal lists of"
        return f"got {came} values"
    if not set(map(type, flat)) <= {int, float, type(None)}:
        number = next(i for i, x in enumerate(flat) if type(x) not in (int, float, type(None)))
        return f"number {number} is {_short(flat[number])}"
    try:
        return np.array(flat, np.float64).reshape(shape)
    except OverflowError:
        return "a number is too large"


def _unfit(values: Array, low: float = -LARGEST, high: float = LARGEST) -> str | None:
    """The first number that is not within bounds, in words."""
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    return None if not len(bad) else f"number {bad[0]} is {values.ravel()[bad[0]]:g}"


def _id_of(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _leaves(name: str) -> bool:
    """Whether a file name is absolute or leads out of the folder it is relative to."""
    windows = PureWindowsPath(name)
    plain = posixpath.normpath(name.replace("\\", "/"))
    return plain.split("/")[0] in ("..", "") or bool(windows.drive or windows.root)


def _images(rows: list[Any], faults: _Faults) -> dict[Any, tuple[int, Row]]:
    """Well-formed images and their positions, by id."""
    found: dict[Any, tuple[int, Row]] = {}
    twice: dict[Any, list[str]] = {}
    for position, row in enumerate(rows):
        key = row.get("id") if isinstance(row, dict) else None
        name = row.get("file_name") if isinstance(row, dict) else None
        if not _id_of(key) or not isinstance(name, str) or not name:
            text = f"entry {position} of images must have an id and a file_name, got {_short(row)}"
            faults.add("file", text)
            continue
        if _leaves(name):
            text = f"image {key}: file_name {_short(name)} leads out of the folder of the images"
            faults.add("names", text, "file_name is relative to data.root and stays below it")
            continue
        for side in ("width", "height"):
            size = row.get(side)
            if size is not None and not (type(size) in (int, float) and 0 < size <= LARGEST):
                text = f"image {key}: {side} must be a positive number, got {_short(size)}"
                faults.add("size", text, f"leave {side} out where it is not known")
                row = {**row, side: None}
        if key in found and found[key][1] != row:
            twice.setdefault(key, [found[key][1]["file_name"]]).append(name)
        found.setdefault(key, (len(found), row))
    if twice:
        shown_ids = [f"{key!r} ({', '.join(names[:2])})" for key, names in twice.items()]
        faults.add(
            "ids",
            f"{len(twice)} image ids stand for several images: {shown(shown_ids)}",
            "were two files joined? number the images of one again, and image_id with them",
        )
    return found


def _parts(note: Row) -> Iterator[tuple[str, Any, bool | None]]:
    """Keypoints of an annotation by field, with the side where the field states it."""
    if not any(key in note for key in WHOLE_BODY):
        yield "keypoints", note.get("keypoints"), None
        return
    for key in WHOLE_BODY:
        # COCO-WholeBody writes zeros for a hand that is not labelled.
        if note.get(key) is not None and note.get(key.replace("kpts", "valid"), True):
            yield key, note[key], key.startswith("right")


def _keypoints(entry: str, field: str, value: Any, faults: _Faults) -> Array | None:
    found = numbers(value, [(3 * NUM_JOINTS,), (NUM_JOINTS, 3)])
    if isinstance(found, str):
        if isinstance(value, list) and not found.startswith("number "):
            count = f"{len(value) / 3:g}" if value and not isinstance(value[0], list) else None
            found = f"has {count} keypoints" if count else f"has {field} of another form, {found}"
            text = f"{entry} {found}, wanted {NUM_JOINTS}"
            hint = "two hands need two annotations" if len(value) == 6 * NUM_JOINTS else FORM
            fix = f"{NUM_JOINTS} keypoints of x, y, visibility are required: {hint}"
            faults.add("count", text, fix)
        else:
            text = f"{entry}: {field} must be {3 * NUM_JOINTS} numbers, {found}"
            faults.add("numbers", text if value is not None else f"{entry} has no {field}")
        return None
    found = found.reshape(NUM_JOINTS, 3)
    is_labelled = found[:, 2] > 0
    bad = _unfit(found[:, 2]) or _unfit(np.where(is_labelled[:, None], found, 0.0))
    if bad:
        text = f"{entry}: {field} must be numbers within {LARGEST:.0e}, {bad}"
        faults.add("numbers", text, f"{field} are x, y in px and a visibility: {FORM}")
        return None
    return np.where(is_labelled[:, None], found, 0.0)


def _optional(
    entry: str, note: Row, field: str, shapes: Sequence[tuple[int, ...]], what: str, faults: _Faults
) -> Array | None:
    """A field of numbers that may be missing; None also where it is refused."""
    value = note.get(field)
    if value is None:
        return None
    found = numbers(value, shapes)
    low, high = (0.0, 1.0) if field == "keypoint_scores" else (-LARGEST, LARGEST)
    bad: str | None = found if isinstance(found, str) else None
    if not isinstance(found, str) and found.shape[-1] == 4:  # hidden joints may hold anything
        hidden = ~(found[:, 3:] > 0)
        bad = _unfit(found[:, 3])
        found = np.where(hidden, 0.0, found)
    if bad or isinstance(found, str) or (bad := _unfit(found, low, high)):
        kind = {"keypoint_scores": "scores", "keypoints_3d": "3d", "K": "k"}[field]
        faults.add(kind, f"{entry}: {field} must be {what}, {bad}")
        return None
    return found


def _hands(rows: list[Any], images: Mapping[Any, tuple[int, Row]], sides: SideReader,
           faults: _Faults) -> Iterator[tuple[Hand, str]]:  # fmt: skip
    """Well-formed hands, each with the field that states its side ("" where none does)."""
    for position, note in enumerate(rows):
        if not isinstance(note, dict):
            faults.add("file", f"entry {position} of annotations must be an object")
            continue
        key = note.get("image_id")
        entry = f"annotation {note.get('id', note.get('image_id', f'at position {position}'))}"
        if not _id_of(key) or key not in images:
            text = f"{entry}: image_id is {_short(key)}, no id of `images`"
            other = str(key) if isinstance(key, int) else key
            numbers_as_text = isinstance(other, str) and any(str(k) == other for k in images)
            hint = "; numbers and strings differ" if numbers_as_text else ""
            fix = f"take the annotation out, or add its image: {FORM}{hint}"
            faults.add("file", text, fix)
            continue
        image, row = images[key]
        category = note.get("category_id")
        if category is not None and not _id_of(category):
            faults.add("file", f"{entry}: category_id must be a number, got {_short(category)}")
            continue
        try:
            stated = sides.read(note, row)
        except ValueError as error:
            faults.add("side", f"{entry} {error}", f"a side is stated by {KNOWN}")
            stated = True, ""
        joints = _optional(
            entry,
            note,
            "keypoints_3d",
            [(NUM_JOINTS, 3), (NUM_JOINTS, 4), (3 * NUM_JOINTS,), (4 * NUM_JOINTS,)],
            f"{NUM_JOINTS} x 3 or {NUM_JOINTS} x 4 finite numbers",
            faults,
        )
        joints = None if joints is None else joints.reshape(NUM_JOINTS, -1)
        what = f"{NUM_JOINTS} numbers in [0, 1]"
        scores = _optional(entry, note, "keypoint_scores", [(NUM_JOINTS,)], what, faults)
        K = _optional(entry, note, "K", [(3, 3), (9,)], "3 x 3 finite numbers", faults)
        for field, value, is_right in _parts(note):
            keypoints = _keypoints(entry, field, value, faults)
            if keypoints is None or (is_right is not None and not keypoints.any()):
                continue
            one = field == "keypoints"
            yield Hand(
                entry if one else f"{entry} ({field})",
                image,
                keypoints,
                is_right=is_right if is_right is not None else stated[0] if stated else True,
                joints=joints[:, :3] if one and joints is not None else None,
                joints_valid=joints[:, 3] > 0 if one and joints is not None and joints.shape[1] == 4
                else np.ones(NUM_JOINTS, bool) if one and joints is not None else None,
                scores=scores if one else None,
                K=None if K is None else K.reshape(3, 3),
                category=category,
            ), field if not one else stated[1] if stated else ""


def _repeated(rows: list[Any], faults: _Faults) -> None:
    """Annotation ids that several annotations share; copies of one row are meant."""
    first: dict[Any, Row] = {}
    twice: dict[Any, None] = {}
    for row in rows:
        key = row.get("id") if isinstance(row, dict) else None
        if _id_of(key) and first.setdefault(key, row) != row:
            twice[key] = None
    if twice:
        faults.add(
            "ids",
            f"{len(twice)} annotation ids occur more than once: {shown([repr(k) for k in twice])}",
            "were two files joined? number the annotations again, or leave their id out",
        )


def read_annotations(path: Path, notes: Notes, option: str = "data.annotations") -> Annotations:
    """Read a file as far as its entries are well formed.

    Args:
        path: JSON file with `images` and `annotations`, as in COCO and COCO-WholeBody.
        notes: where findings go; entries with an error are left out of what is returned.
        option: config key that names the file.
    Raises: FileNotFoundError; ValueError for a file that is no JSON, or has no such lists.
    """
    content = read_json(path, option=option)
    lists = content if isinstance(content, dict) else {}
    missing = [key for key in ("images", "annotations") if key not in lists]
    if missing:
        raise ValueError(
            f"{path} lacks {missing}: not a COCO-style keypoint file, {FORM} ({option})"
        )
    for key in ("images", "annotations"):
        if not isinstance(lists[key], list) or not lists[key]:
            came = "an empty list" if lists[key] == [] else _short(lists[key])
            raise ValueError(f"{path}: {key} must be a list of entries, got {came} ({option})")
    rows = lists["annotations"]
    categories = lists.get("categories")
    categories = categories if isinstance(categories, list) else []
    sides = SideReader(
        [row for row in rows if isinstance(row, dict)],
        [c for c in categories if isinstance(c, dict)],
    )
    faults = _Faults(notes)
    images = _images(lists["images"], faults)
    _repeated(rows, faults)
    found = list(_hands(rows, images, sides, faults))
    faults.note()
    hands = [hand for hand, _ in found]
    if hands:
        _note_sides(notes, hands, Counter(field for _, field in found))
    return Annotations([row for _, row in images.values()], hands)


def _note_sides(notes: Notes, hands: list[Hand], fields: Counter[str]) -> None:
    right = sum(hand.is_right for hand in hands)
    silent = fields.pop("", 0)
    text = f"{len(hands)} hands, {right} right and {len(hands) - right} left"
    text += f", by {', '.join(fields)}" if fields else ", no field states the side: all count right"
    if silent and fields:
        text += f"; {silent} state none and count as right"
    fix = f"state the side of every hand: {KNOWN}"
    notes.judge(not (silent and fields), "keypoints-side", text, fix, bad="warning")


