"""COCO-style keypoint files: read, checked entry by entry, and converted to arrays; errors are
findings. `annotation_checks` checks what the numbers mean."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
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
Images = dict[Any, tuple[int, Row] | None]  # positions and entries by id; None for a refused one

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
    visibility: int = 9  # column, if any: rows where it is not positive may hold anything


_NUM, _FORM = NUM_JOINTS, f"numbers: x, y in px and a visibility of {NUM_JOINTS} keypoints"
_KEYPOINTS = Field("numbers", f"{3 * _NUM} {_FORM}", ((3 * _NUM,), (_NUM, 3)), _NUM, visibility=2)
_SHAPES_3D = (_NUM, 3), (_NUM, 4), (3 * _NUM,), (4 * _NUM,)
_FORM_3D = f"{_NUM} x 3 or {_NUM} x 4 finite numbers"
FIELDS: dict[str, Field] = {
    **dict.fromkeys(("keypoints", *WHOLE_BODY), _KEYPOINTS),
    "keypoint_scores": Field("scores", f"{_NUM} numbers in [0, 1]", ((_NUM,),), low=0.0, high=1.0),
    "keypoints_3d": Field("3d-form", _FORM_3D, _SHAPES_3D, _NUM, visibility=3),
    "K": Field("k", "3 x 3 finite numbers", ((3, 3), (9,)), 3),
}


class Hand(NamedTuple):
    """One labelled hand."""

    entry: str  # its name in messages
    image: int  # row of `images`
    keypoints: Array  # [21, 3] px and visibility; zeros where that is not positive
    is_right: bool
    side_field: str = ""  # that states the side; "" where none does
    joints: Array | None = None  # [21, 4] metres, x right, y down, z away from the camera; validity
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
            # occluded ones keep their 3D label
            "joints_cam_m": None if self.joints is None else self.joints[:, :3],
            "joints_valid": None if self.joints is None else self.joints[:, 3] > 0,
        }


def read_field(notes: Notes, entry: str, note: Row, field: str) -> Array | None:
    """A field of `FIELDS` as [rows, columns], zeros where a keypoint is not visible; None where it
    is missing, null or refused."""
    spec, value = FIELDS[field], note.get(field)
    if value is None:
        if spec is _KEYPOINTS:
            notes.error(spec.finding, f"{entry} has no {field}", FORM)
        return None
    found = numbers(value, spec.shapes)
    if isinstance(found, str):
        bad = found
    else:
        found = found.reshape(spec.rows, -1)
        hidden = ~(found[:, spec.visibility :] > 0).all(axis=1)
        found[hidden, : spec.visibility] = 0.0
        outside = np.flatnonzero(~((found >= spec.low) & (found <= spec.high)))
        if not len(outside):
            found[hidden] = 0.0
            return found
        bad = f"number {outside[0]} is {found.ravel()[outside[0]]:g}"
    fix = FORM if spec is _KEYPOINTS else f"{FORM}; leave {field} out where it is not known"
    notes.error(spec.finding, f"{entry}: {field} must be {spec.form}, {bad}", fix)
    return None


def read_hand(
    notes: Notes, entry: str, image: int, note: Row, sides: SideReader, *others: Row
) -> Hand | None:
    """A hand; None where it is refused. `others` are further objects that may state its side."""
    keypoints, scores, joints, K = (
        read_field(notes, entry, note, name)
        for name in ("keypoints", "keypoint_scores", "keypoints_3d", "K")
    )
    try:
        is_right, side_field = sides.read(note, *others) or (True, "")
    except ValueError as error:
        notes.error("side", f"{entry} {error}", f"a side is stated by {KNOWN}")
        return None
    if keypoints is None:
        return None
    if joints is not None and joints.shape[1] == 3:
        joints = np.column_stack([joints, np.ones(NUM_JOINTS)])
    stated = numbers(note.get("bbox"), [(4,)])  # not used: of any form
    box = None if isinstance(stated, str) else stated
    scores = None if scores is None else scores[0]
    category = note.get("category_id")
    return Hand(entry, image, keypoints, is_right, side_field, joints, scores, K, category, box)


class Annotations(NamedTuple):
    """Checked entries of `images`, and labelled hands in the file's order."""

    images: list[Row]
    hands: list[Hand]


def read_annotations(path: Path, notes: Notes) -> Annotations:
    """Read a JSON file with `images` and `annotations`, as in COCO and COCO-WholeBody; entries with
    an error are noted and left out. Raises: ValueError for a file without such lists."""
    content = read_json(path)
    lists = content if isinstance(content, dict) else {}
    errors = Notes(fix=FORM)
    for key in ("images", "annotations"):
        if key not in lists:
            raise ValueError(f"{path} lacks {key!r}: not a COCO-style keypoint file, {FORM}")
        if not isinstance(lists[key], list) or not lists[key]:
            came = "an empty list" if lists[key] == [] else short(lists[key])
            raise ValueError(f"{path}: {key} must be a list of entries, got {came}")
    categories = _categories(lists, notes, errors)
    entries = [row for row in (*lists["annotations"], *lists["images"]) if isinstance(row, dict)]
    by_id = _images(lists["images"], errors)
    for kind in ("images", "annotations"):
        first: dict[Any, Row] = {}  # copies of one entry are meant
        rows = [row for row in lists[kind] if isinstance(row, dict) and _is_id(row.get("id"))]
        twice = {repr(row["id"]): 0 for row in rows if first.setdefault(row["id"], row) != row}
        if twice:
            text = f"{len(twice)} ids of {kind} occur more than once: {shown(list(twice))}"
            fix = f"were two files joined? number their {kind} again, and what refers to them"
            errors.error("ids", text, fix)
    info = lists["info"] if isinstance(lists.get("info"), dict) else {}
    sides = SideReader(entries, categories)
    hands = list(_hands(lists["annotations"], by_id, sides, info, errors))
    notes.add_entries(errors)
    if hands:
        _note_sides(notes, hands, entries)
        unknown = {hand.category for hand in hands} - {row["id"] for row in categories} - {None}
        if categories and unknown:
            text = f"category_id {shown([repr(key) for key in unknown])} is no id of `categories`"
            notes.warning("categories", text, "add it, or correct category_id")
    return Annotations([image[1] for image in by_id.values() if image is not None], hands)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _leaves(name: str) -> bool:
    """Whether a file name is absolute or leads out of the folder it is relative to."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    return plain.split("/")[0] in ("..", "") or name[1:2] == ":"  # a drive


def _images(rows: list[Any], errors: Notes) -> Images:
    found: Images = {}
    num = 0
    for position, row in enumerate(rows):
        key, name = (row.get("id"), row.get("file_name")) if isinstance(row, dict) else (None, None)
        if not _is_id(key) or not isinstance(name, str) or not name or _leaves(name):
            text = f"entry {position} of images must have an id and a file_name, got {short(row)}"
            if isinstance(name, str) and _is_id(key) and name:
                text = f"image {key}: file_name {short(name)} leads out of the folder of the images"
            errors.error("file", text)
            if _is_id(key):
                found.setdefault(key, None)
            continue
        for side in ("width", "height"):
            size = row.get(side)
            if size is not None and not (type(size) in (int, float) and 0 < size <= LARGEST):
                text = f"image {key}: {side} must be a positive number, got {short(size)}"
                errors.error("size", text, f"leave {side} out where it is not known")
                row = {**row, side: None}
        if key not in found:
            found[key], num = (num, row), num + 1
    return found


def _hands(
    rows: list[Any], images: Images, sides: SideReader, info: Row, errors: Notes
) -> Iterator[Hand]:
    """Well-formed hands; those of refused images are left out without a word."""
    for position, note in enumerate(rows):
        if not isinstance(note, dict):
            errors.error("file", f"entry {position} of annotations must be an object")
            continue
        key, category = note.get("image_id"), note.get("category_id")
        entry = f"annotation {short(note.get('id', note.get('image_id', f'at {position}')))}"
        if not _is_id(key) or key not in images:
            fix = "take the annotation out, or add its image"
            if str(key) in map(str, images):
                fix = "numbers and strings differ: write both alike"
            text = f"{entry}: image_id is {short(key)}, no id of `images`"
            errors.error("file", text, f"{fix}: {FORM}")
        elif category is not None and not _is_id(category):
            text = f"{entry}: category_id must be a number, got {short(category)}"
            errors.error("file", text)
        elif (found := images[key]) is None:
            continue
        elif not any(field in note for field in WHOLE_BODY):
            hand = read_hand(errors, entry, found[0], note, sides, found[1], info)
            if hand is not None:
                yield hand
        else:
            for field in WHOLE_BODY:
                # COCO-WholeBody writes zeros for a hand that is not labelled.
                if note.get(field) is None or not note.get(field.replace("kpts", "valid"), True):
                    continue
                keypoints = read_field(errors, entry, note, field)
                if keypoints is not None and keypoints.any():
                    name, is_right = f"{entry} ({field})", field.startswith("right")
                    yield Hand(name, found[0], keypoints, is_right, field, category=category)


def _categories(lists: Row, notes: Notes, errors: Notes) -> list[Row]:
    for field, kind in (("info", dict), ("licenses", list)):
        if lists.get(field) and not isinstance(lists[field], kind):
            text = f"{field} is {short(lists[field])}, COCO has a {kind.__name__} there"
            notes.warning("form", text, f"{field} is not read")
    rows, names = lists.get("categories") or [], dict[Any, Any]()
    fix = "categories are a list of objects with an id and a name, or left out"
    if not isinstance(rows, list):
        errors.error("categories", f"categories is {short(rows)}", fix)
        return []
    for position, row in enumerate(rows):
        key = row.get("id") if isinstance(row, dict) else None
        if isinstance(row, dict) and key is None:
            continue  # no annotation refers to it
        if not _is_id(key) or not isinstance(row.get("name", ""), str):
            errors.error("categories", f"entry {position} of categories is {short(row)}", fix)
        elif names.setdefault(key, row.get("name")) != row.get("name"):
            text = f"category id {key!r} stands for {names[key]!r} and {row.get('name')!r}"
            errors.error("categories", text, "give every category an id of its own")
    return [{"id": key, "name": name} for key, name in names.items()]


def _note_sides(notes: Notes, hands: list[Hand], entries: list[Row]) -> None:
    right = sum(hand.is_right for hand in hands)
    fields = Counter(hand.side_field for hand in hands)
    silent = fields.pop("", 0)
    text = f"{len(hands)} hands, {right} right and {len(hands) - right} left"
    text += f", by {', '.join(fields)}" if fields else ", no field states the side: all count right"
    if silent and fields:
        text += f"; {silent} state none and count as right"
    elif silent and (odd := mentions(entries)):
        text += f"; {shown(odd)} is not read as a side"
    fix = f"state the side of every hand, or in `info` that of all: {KNOWN}"
    notes.judge(not silent, "side", text, fix, bad="warning")
