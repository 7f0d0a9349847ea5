"""COCO-style keypoint files: read, checked entry by entry, and converted to arrays.

Errors are findings, so that the doctor reports all of them. `annotation_checks` checks what the
numbers mean.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.data.hand_sides import KNOWN, SideReader, mentions
from handmim.data.label_files import numbers, short
from handmim.hand.skeleton import NUM_JOINTS
from handmim.utils.findings import Notes, shown
from handmim.utils.json_files import read_json

Array = NDArray[np.float64]
Row = dict[str, Any]

FORM = "data/README.md shows the form of the file"
LARGEST = 1e6  # of a coordinate, in px or m; no image and no scene has more
WHOLE_BODY = ("lefthand_kpts", "righthand_kpts")


class Field(NamedTuple):
    """Numbers of an annotation."""

    finding: str  # its name where they are refused
    form: str
    shapes: tuple[tuple[int, ...], ...]  # in the file
    rows: int = 1
    low: float = -LARGEST
    high: float = LARGEST
    visibility: int | None = None  # column: rows where it is not positive may hold anything


_KEYPOINTS = Field(
    "numbers", f"{3 * NUM_JOINTS} numbers: x, y in px and a visibility of {NUM_JOINTS} keypoints",
    ((3 * NUM_JOINTS,), (NUM_JOINTS, 3)), NUM_JOINTS, visibility=2,
)  # fmt: skip
FIELDS: dict[str, Field] = {
    **dict.fromkeys(("keypoints", *WHOLE_BODY), _KEYPOINTS),
    "keypoint_scores": Field(
        "scores", f"{NUM_JOINTS} numbers in [0, 1]", ((NUM_JOINTS,),), low=0.0, high=1.0
    ),
    "keypoints_3d": Field(
        "3d-form",
        f"{NUM_JOINTS} x 3 or {NUM_JOINTS} x 4 finite numbers",
        ((NUM_JOINTS, 3), (NUM_JOINTS, 4), (3 * NUM_JOINTS,), (4 * NUM_JOINTS,)),
        NUM_JOINTS,
        visibility=3,
    ),
    "K": Field("k", "3 x 3 finite numbers", ((3, 3), (9,)), 3),
}


def read_field(notes: Notes, entry: str, note: Mapping[str, Any], field: str) -> Array | None:
    """A field of `FIELDS` as [rows, columns]; None where it is missing, null or refused."""
    spec, value = FIELDS[field], note.get(field)
    if value is None:
        return None
    found = numbers(value, spec.shapes)
    if isinstance(found, str):
        bad = found
    else:
        found = found.reshape(spec.rows, -1)
        if spec.visibility is not None and found.shape[1] > spec.visibility:
            found[~(found[:, spec.visibility] > 0), : spec.visibility] = 0.0
        outside = np.flatnonzero(~((found >= spec.low) & (found <= spec.high)))
        if not len(outside):
            return found
        bad = f"number {outside[0]} is {found.ravel()[outside[0]]:g}"
    fix = FORM if spec is _KEYPOINTS else f"{FORM}; leave {field} out where it is not known"
    notes.error(spec.finding, f"{entry}: {field} must be {spec.form}, {bad}", fix)
    return None


def read_keypoints(notes: Notes, entry: str, note: Mapping[str, Any], field: str) -> Array | None:
    """[21, 3] px and visibility, zeros where that is not positive; None where it is refused."""
    if note.get(field) is None:
        notes.error("numbers", f"{entry} has no {field}", FORM)
    found = read_field(notes, entry, note, field)
    return None if found is None else np.where(found[:, 2:] > 0, found, 0.0)


class Hand(NamedTuple):
    """One labelled hand."""

    entry: str  # its name in messages
    image: int  # row of `images`
    keypoints: Array  # [21, 3] px and visibility; zeros where that is not positive
    is_right: bool
    joints: Array | None = None  # [21, 3] metres, x right, y down, z away from the camera
    joints_valid: NDArray[np.bool_] | None = None  # [21], where there are joints
    scores: Array | None = None  # [21] confidences of the keypoints in [0, 1]
    K: Array | None = None  # [3, 3] px
    category: Any = None
    box: Array | None = None  # [4] x, y, width, height px, as the file has it

    @property
    def labels(self) -> dict[str, Any]:
        """Labels of `crop_sample` beside the keypoints."""
        return {
            "is_right": self.is_right,
            "K_px": self.K,
            "kp2d_valid": self.keypoints[:, 2] > 0,
            "kp2d_conf": self.scores,
            "joints_cam_m": self.joints,  # occluded ones keep their 3D label
            "joints_valid": self.joints_valid,
        }


def read_hand(
    notes: Notes, entry: str, image: int, note: Row, sides: SideReader, *others: Row
) -> tuple[Hand, str] | None:
    """A hand and the field that states its side, "" where none does; None where it is refused.

    `others` are further objects that may state the side.
    """
    keypoints = read_keypoints(notes, entry, note, "keypoints")
    scores, joints, K = (
        read_field(notes, entry, note, name) for name in ("keypoint_scores", "keypoints_3d", "K")
    )
    try:
        is_right, field = sides.read(note, *others) or (True, "")
    except ValueError as error:
        notes.error("side", f"{entry} {error}", f"a side is stated by {KNOWN}")
        return None
    if keypoints is None:
        return None
    is_valid = None
    if joints is not None:
        is_valid = joints[:, 3] > 0 if joints.shape[1] == 4 else np.ones(NUM_JOINTS, bool)
        joints = joints[:, :3]
    box = numbers(note.get("bbox"), [(4,)])  # not used: of any form
    hand = Hand(
        entry,
        image,
        keypoints,
        is_right,
        joints,
        is_valid,
        scores=None if scores is None else scores[0],
        K=K,
        category=note.get("category_id"),
        box=None if isinstance(box, str) else box,
    )
    return hand, field


class Annotations(NamedTuple):
    """Checked entries of `images`, and labelled hands in the file's order."""

    images: list[Row]
    hands: list[Hand]


def is_id(value: Any) -> bool:
    """Whether a value can be an id: a whole number or a string."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def read_annotations(path: Path, notes: Notes) -> Annotations:
    """Read a JSON file with `images` and `annotations`, as in COCO and COCO-WholeBody; entries with
    an error are noted and left out. Raises: ValueError for a file without such lists."""
    content = read_json(path)
    lists = content if isinstance(content, dict) else {}
    for key in ("images", "annotations"):
        if key not in lists:
            raise ValueError(f"{path} lacks {key!r}: not a COCO-style keypoint file, {FORM}")
        if not isinstance(lists[key], list) or not lists[key]:
            came = "an empty list" if lists[key] == [] else short(lists[key])
            raise ValueError(f"{path}: {key} must be a list of entries, got {came}")
    errors = Notes(fix=FORM)
    categories = _categories(lists, notes, errors)
    entries = [row for row in (*lists["annotations"], *lists["images"]) if isinstance(row, dict)]
    images, refused = _images(lists["images"], errors)
    _note_repeated(lists, errors)
    info = lists.get("info")
    reader = _HandReader(
        images, refused, SideReader(entries, categories), info if isinstance(info, dict) else {}
    )
    found = list(reader.hands(lists["annotations"], errors))
    notes.add_entries(errors)
    hands = [hand for hand, _ in found]
    if hands:
        _note_sides(notes, hands, Counter(field for _, field in found), entries)
        unknown = {hand.category for hand in hands} - {row["id"] for row in categories} - {None}
        if categories and unknown:
            text = f"category_id {shown([repr(key) for key in unknown])} is no id of `categories`"
            notes.warning("categories", text, "add it, or correct category_id")
    return Annotations([row for _, row in images.values()], hands)


def _leaves(name: str) -> bool:
    """Whether a file name is absolute or leads out of the folder it is relative to."""
    if not name.startswith("/") and not any(mark in name for mark in ("..", "\\", ":")):
        return False
    windows = PureWindowsPath(name)
    plain = posixpath.normpath(name.replace("\\", "/"))
    return plain.split("/")[0] in ("..", "") or bool(windows.drive or windows.root)


def _images(rows: list[Any], errors: Notes) -> tuple[dict[Any, tuple[int, Row]], set[Any]]:
    """Well-formed images and their positions by id, and ids of refused ones."""
    found: dict[Any, tuple[int, Row]] = {}
    refused: set[Any] = set()
    for position, row in enumerate(rows):
        key = row.get("id") if isinstance(row, dict) else None
        name = row.get("file_name") if isinstance(row, dict) else None
        if not is_id(key) or not isinstance(name, str) or not name:
            text = f"entry {position} of images must have an id and a file_name, got {short(row)}"
            errors.error("file", text)
            refused.update([key] if is_id(key) else [])
            continue
        if _leaves(name):
            text = f"image {key}: file_name {short(name)} leads out of the folder of the images"
            errors.error("names", text, "file_name is relative to data.root and stays below it")
            refused.add(key)
            continue
        for side in ("width", "height"):
            size = row.get(side)
            if size is not None and not (type(size) in (int, float) and 0 < size <= LARGEST):
                text = f"image {key}: {side} must be a positive number, got {short(size)}"
                errors.error("size", text, f"leave {side} out where it is not known")
                row = {**row, side: None}
        found.setdefault(key, (len(found), row))
    return found, refused


def _note_repeated(lists: Row, errors: Notes) -> None:
    """Ids that several entries share; copies of one entry are meant."""
    for kind in ("images", "annotations"):
        first: dict[Any, Row] = {}
        rows = [row for row in lists[kind] if isinstance(row, dict) and is_id(row.get("id"))]
        repeated = (row["id"] for row in rows if first.setdefault(row["id"], row) != row)
        if twice := list(dict.fromkeys(repeated)):
            ids = shown([repr(key) for key in twice])
            text = f"{len(twice)} ids of {kind} occur more than once: {ids}"
            fix = f"were two files joined? number their {kind} again, and what refers to them"
            errors.error("ids", text, fix)


class _HandReader(NamedTuple):
    """Read the hands of annotations whose images are known."""

    images: Mapping[Any, tuple[int, Row]]  # positions and entries of images, by id
    refused: set[Any]  # ids of images whose hands are left out
    sides: SideReader
    info: Row

    def hands(self, rows: list[Any], errors: Notes) -> Iterator[tuple[Hand, str]]:
        """Well-formed hands, each with the field that states its side ("" where none does)."""
        for position, note in enumerate(rows):
            if not isinstance(note, dict):
                errors.error("file", f"entry {position} of annotations must be an object")
                continue
            name = note.get("id", note.get("image_id", f"at position {position}"))
            entry, category = f"annotation {short(name)}", note.get("category_id")
            if not self._has_image(note.get("image_id"), entry, errors):
                continue
            if category is not None and not is_id(category):
                text = f"{entry}: category_id must be a number, got {short(category)}"
                errors.error("file", text)
            elif any(field in note for field in WHOLE_BODY):
                yield from self._whole_body(note, entry, errors)
            else:
                image, row = self.images[note["image_id"]]
                found = read_hand(errors, entry, image, note, self.sides, row, self.info)
                yield from [] if found is None else [found]

    def _has_image(self, key: Any, entry: str, errors: Notes) -> bool:
        if is_id(key) and key in self.images:
            return True
        if not is_id(key) or key not in self.refused:
            fix = "take the annotation out, or add its image"
            if str(key) in map(str, self.images):
                fix = "numbers and strings differ: write both alike"
            text = f"{entry}: image_id is {short(key)}, no id of `images`"
            errors.error("file", text, f"{fix}: {FORM}")
        return False

    def _whole_body(self, note: Row, entry: str, errors: Notes) -> Iterator[tuple[Hand, str]]:
        image, _ = self.images[note["image_id"]]
        for field in WHOLE_BODY:
            # COCO-WholeBody writes zeros for a hand that is not labelled.
            if note.get(field) is None or not note.get(field.replace("kpts", "valid"), True):
                continue
            keypoints = read_keypoints(errors, entry, note, field)
            if keypoints is not None and keypoints.any():
                is_right, category = field.startswith("right"), note.get("category_id")
                name = f"{entry} ({field})"
                yield Hand(name, image, keypoints, is_right, category=category), field


def _categories(lists: Row, notes: Notes, errors: Notes) -> list[Row]:
    """Entries of `categories`, none where there is no such list."""
    for field, kind in (("info", dict), ("licenses", list)):
        if lists.get(field) and not isinstance(lists[field], kind):
            text = f"{field} is {short(lists[field])}, COCO has a {kind.__name__} there"
            notes.warning("form", text, f"{field} is not read")
    rows = lists.get("categories") or []
    fix = "categories are a list of objects with an id and a name, or left out"
    names: dict[Any, Any] = {}
    if not isinstance(rows, list):
        errors.error("categories", f"categories is {short(rows)}", fix)
        return []
    for position, row in enumerate(rows):
        key = row.get("id") if isinstance(row, dict) else None
        if isinstance(row, dict) and key is None:
            continue  # no annotation refers to it
        if not is_id(key) or not isinstance(row.get("name", ""), str):
            errors.error("categories", f"entry {position} of categories is {short(row)}", fix)
        elif names.setdefault(key, row.get("name")) != row.get("name"):
            text = f"category id {key!r} stands for {names[key]!r} and {row.get('name')!r}"
            errors.error("categories", text, "give every category an id of its own")
    return [{"id": key, "name": name} for key, name in names.items()]


def _note_sides(notes: Notes, hands: list[Hand], fields: Counter[str], entries: list[Row]) -> None:
    right = sum(hand.is_right for hand in hands)
    silent = fields.pop("", 0)
    text = f"{len(hands)} hands, {right} right and {len(hands) - right} left"
    text += f", by {', '.join(fields)}" if fields else ", no field states the side: all count right"
    if silent and fields:
        text += f"; {silent} state none and count as right"
    if silent and (odd := mentions(entries)) and not fields:
        text += f"; {shown(odd)} is not read as a side"
    fix = f"state the side of every hand, or in `info` that of all: {KNOWN}"
    notes.judge(not silent, "side", text, fix, bad="warning")
