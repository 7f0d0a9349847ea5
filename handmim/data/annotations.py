"""COCO-style keypoint files: read, checked entry by entry, and converted to arrays.

Errors are findings, so that the doctor reports all of them. `annotation_checks` checks what the
numbers mean.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.data.annotation_fields import (
    FORM,
    KNOWN,
    LARGEST,
    Array,
    Faults,
    Row,
    SideReader,
    is_id,
    mentions,
    numbers,
    read_keypoints,
    read_optional,
    short,
)
from handmim.hand.skeleton import NUM_JOINTS
from handmim.utils.findings import Notes, shown
from handmim.utils.json_files import read_json

WHOLE_BODY = ("lefthand_kpts", "righthand_kpts")


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
        box: [4] x, y, width, height px, as the file has it.
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
    box: Array | None = None


@dataclass(frozen=True)
class Annotations:
    """Content of one file.

    Args:
        images: checked entries of `images`.
        hands: labelled hands in the file's order.
    """

    images: list[Row]
    hands: list[Hand]


def _leaves(name: str) -> bool:
    """Whether a file name is absolute or leads out of the folder it is relative to."""
    if not name.startswith("/") and not any(mark in name for mark in ("..", "\\", ":")):
        return False
    windows = PureWindowsPath(name)
    plain = posixpath.normpath(name.replace("\\", "/"))
    return plain.split("/")[0] in ("..", "") or bool(windows.drive or windows.root)


def _images(rows: list[Any], faults: Faults) -> tuple[dict[Any, tuple[int, Row]], set[Any]]:
    """Well-formed images and their positions by id, and ids of refused ones."""
    found: dict[Any, tuple[int, Row]] = {}
    refused: set[Any] = set()
    twice: dict[Any, list[str]] = {}
    for position, row in enumerate(rows):
        key = row.get("id") if isinstance(row, dict) else None
        name = row.get("file_name") if isinstance(row, dict) else None
        if not is_id(key) or not isinstance(name, str) or not name:
            text = f"entry {position} of images must have an id and a file_name, got {short(row)}"
            faults.add("file", text)
            refused.update([key] if is_id(key) else [])
            continue
        if _leaves(name):
            text = f"image {key}: file_name {short(name)} leads out of the folder of the images"
            faults.add("names", text, "file_name is relative to data.root and stays below it")
            refused.add(key)
            continue
        for side in ("width", "height"):
            size = row.get(side)
            if size is not None and not (type(size) in (int, float) and 0 < size <= LARGEST):
                text = f"image {key}: {side} must be a positive number, got {short(size)}"
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
    return found, refused


class _HandReader:
    """Read the hands of annotations whose images are known.

    Args:
        images: positions and entries of images, by id.
        refused: ids of images whose hands are left out.
        sides: of the file.
        info: of the file.
        faults: where those of the entries go.
    """

    def __init__(
        self,
        images: Mapping[Any, tuple[int, Row]],
        refused: set[Any],
        sides: SideReader,
        info: Row,
        faults: Faults,
    ) -> None:
        self.images, self.refused, self.faults = images, refused, faults
        self.sides, self.info = sides, info

    def hands(self, rows: list[Any]) -> Iterator[tuple[Hand, str]]:
        """Well-formed hands, each with the field that states its side ("" where none does)."""
        for position, note in enumerate(rows):
            if isinstance(note, dict):
                name = note.get("id", note.get("image_id", f"at position {position}"))
                yield from self._of(note, f"annotation {short(name)}")
            else:
                self.faults.add("file", f"entry {position} of annotations must be an object")

    def _of(self, note: Row, entry: str) -> Iterator[tuple[Hand, str]]:
        key, category = note.get("image_id"), note.get("category_id")
        if not is_id(key) or key not in self.images:
            if not is_id(key) or key not in self.refused:
                self._dangling(entry, key)
        elif category is not None and not is_id(category):
            text = f"{entry}: category_id must be a number, got {short(category)}"
            self.faults.add("file", text)
        elif any(field in note for field in WHOLE_BODY):
            yield from self._whole_body(note, entry)
        else:
            yield from self._single(note, entry)

    def _dangling(self, entry: str, key: Any) -> None:
        text = f"{entry}: image_id is {short(key)}, no id of `images`"
        fix = "take the annotation out, or add its image"
        if str(key) in map(str, self.images):
            fix = "numbers and strings differ: write both alike"
        self.faults.add("file", text, f"{fix}: {FORM}")

    def _whole_body(self, note: Row, entry: str) -> Iterator[tuple[Hand, str]]:
        image, _ = self.images[note["image_id"]]
        for field in WHOLE_BODY:
            # COCO-WholeBody writes zeros for a hand that is not labelled.
            if note.get(field) is None or not note.get(field.replace("kpts", "valid"), True):
                continue
            keypoints = read_keypoints(entry, field, note[field], self.faults)
            if keypoints is not None and keypoints.any():
                is_right = field.startswith("right")
                category = note.get("category_id")
                name = f"{entry} ({field})"
                yield Hand(name, image, keypoints, is_right, category=category), field

    def _single(self, note: Row, entry: str) -> Iterator[tuple[Hand, str]]:
        image, row = self.images[note["image_id"]]
        keypoints = read_keypoints(entry, "keypoints", note.get("keypoints"), self.faults)
        scores = read_optional(entry, note, "keypoint_scores", self.faults)
        joints = read_optional(entry, note, "keypoints_3d", self.faults)
        K = read_optional(entry, note, "K", self.faults)
        try:
            is_right, field = self.sides.read(note, row, self.info) or (True, "")
        except ValueError as error:
            self.faults.add("side", f"{entry} {error}", f"a side is stated by {KNOWN}")
            return
        if keypoints is None:
            return
        valid = None
        if joints is not None:
            joints = joints.reshape(NUM_JOINTS, -1)
            valid = joints[:, 3] > 0 if joints.shape[1] == 4 else np.ones(NUM_JOINTS, bool)
            joints = joints[:, :3]
        K = None if K is None else K.reshape(3, 3)
        box = numbers(note.get("bbox"), [(4,)])  # not used: of any form
        yield (
            Hand(
                entry,
                image,
                keypoints,
                is_right,
                joints,
                valid,
                scores,
                K,
                category=note.get("category_id"),
                box=None if isinstance(box, str) else box,
            ),
            field,
        )


def _repeated(rows: list[Any], faults: Faults) -> None:
    """Annotation ids that several annotations share; copies of one row are meant."""
    first: dict[Any, Row] = {}
    twice: dict[Any, None] = {}
    for row in rows:
        key = row.get("id") if isinstance(row, dict) else None
        if is_id(key) and first.setdefault(key, row) != row:
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
            came = "an empty list" if lists[key] == [] else short(lists[key])
            raise ValueError(f"{path}: {key} must be a list of entries, got {came} ({option})")
    rows, faults = lists["annotations"], Faults(notes)
    categories, info = _categories(lists, notes, faults), lists.get("info")
    entries = [row for row in (*rows, *lists["images"]) if isinstance(row, dict)]
    sides = SideReader(entries, categories)
    images, refused = _images(lists["images"], faults)
    _repeated(rows, faults)
    info = info if isinstance(info, dict) else {}
    found = list(_HandReader(images, refused, sides, info, faults).hands(rows))
    faults.note()
    hands = [hand for hand, _ in found]
    if hands:
        _note_sides(notes, hands, Counter(field for _, field in found), entries)
        known = {row["id"] for row in categories}
        unknown = {hand.category for hand in hands} - known - {None}
        if categories and unknown:
            text = f"category_id {shown([repr(key) for key in unknown])} is no id of `categories`"
            notes.warning("keypoints-categories", text, "add it, or correct category_id")
    return Annotations([row for _, row in images.values()], hands)


def _categories(lists: Row, notes: Notes, faults: Faults) -> list[Row]:
    """Entries of `categories`, none where there is no such list."""
    for field, kind in (("info", dict), ("licenses", list)):
        if lists.get(field) and not isinstance(lists[field], kind):
            text = f"{field} is {short(lists[field])}, COCO has a {kind.__name__} there"
            notes.warning("keypoints-form", text, f"{field} is not read")
    rows = lists.get("categories") or []
    fix = "categories are a list of objects with an id and a name, or left out"
    names: dict[Any, Any] = {}
    if not isinstance(rows, list):
        faults.add("categories", f"categories is {short(rows)}", fix)
        return []
    for position, row in enumerate(rows):
        key = row.get("id") if isinstance(row, dict) else None
        if isinstance(row, dict) and key is None:
            continue  # no annotation refers to it
        if not is_id(key) or not isinstance(row.get("name", ""), str):
            faults.add("categories", f"entry {position} of categories is {short(row)}", fix)
        elif names.setdefault(key, row.get("name")) != row.get("name"):
            text = f"category id {key!r} stands for {names[key]!r} and {row.get('name')!r}"
            faults.add("categories", text, "give every category an id of its own")
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
    notes.judge(not silent, "keypoints-side", text, fix, bad="warning")
