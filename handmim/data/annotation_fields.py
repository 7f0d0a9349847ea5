"""Fields of annotation entries: numbers as arrays, and the side of a hand in all usual forms."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.hand.skeleton import NUM_JOINTS
from handmim.utils.findings import Notes

FORM = "data/README.md shows the form of the file"
LARGEST = 1e6  # of a coordinate, in px or m; no image and no scene has more
Array = NDArray[np.float64]
Row = dict[str, Any]

# Kind of the finding, shapes, their description and the bounds of optional fields.
OPTIONAL: dict[str, tuple[str, list[tuple[int, ...]], str, tuple[float, float]]] = {
    "keypoint_scores": ("scores", [(NUM_JOINTS,)], f"{NUM_JOINTS} numbers in [0, 1]", (0.0, 1.0)),
    "keypoints_3d": (
        "3d-form",
        [(NUM_JOINTS, 3), (NUM_JOINTS, 4), (3 * NUM_JOINTS,), (4 * NUM_JOINTS,)],
        f"{NUM_JOINTS} x 3 or {NUM_JOINTS} x 4 finite numbers",
        (-LARGEST, LARGEST),
    ),
    "K": ("k", [(3, 3), (9,)], "3 x 3 finite numbers", (-LARGEST, LARGEST)),
}

KNOWN = (
    "handedness, hand_type, laterality, side, hand, label or type: left or right; is_left or "
    "is_right: true or false; or a category named left_hand or right_hand"
)
_NAMED = (
    "handedness", "handed", "handtype", "handside", "whichhand", "laterality", "chirality",
    "leftright", "leftorright", "rightorleft", "lr",
)  # fmt: skip
_OFTEN = ("side", "hand")  # also used for other things, such as palm and back
# Used for gestures as well: they count where all of their values are sides.
_LOOSE = ("label", "type", "name", "class", "classname", "category", "categoryname", "tag", "tags")
_FLAGS = {"isright": True, "isrighthand": True, "isleft": False, "islefthand": False}
# The edges of boxes have these names too: only true and false count.
_BARE_FLAGS = {"right": True, "righthand": True, "left": False, "lefthand": False}
_WORDS = {"left": False, "l": False, "lh": False, "right": True, "r": True, "rh": True}
_MENTION = re.compile(r"(?<![a-z])(left|right)")  # brightness and copyright do not
_BOOLS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class Faults:
    """Faults of entries by kind: each kind becomes one finding."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, name: str, text: str, fix: str = FORM) -> None:
        """Add a fault of one entry."""
        self.found[f"keypoints-{name}", fix].append(text)

    def note(self) -> None:
        """Write all faults as findings."""
        for (name, fix), texts in self.found.items():
            count = f"{len(texts)} entries, the first: " if len(texts) > 3 else ""
            self.notes.error(name, count + "; ".join(texts[:3]), fix)


def short(value: Any) -> str:
    """A value as text of at most 60 characters."""
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
        return f"got {short(value)}"
    is_nested = bool(value) and all(isinstance(row, list) for row in value)
    lengths = {len(row) for row in value} if is_nested else {0}
    flat = [x for row in value for x in row] if is_nested else value
    shape = (len(value), *lengths) if is_nested else (len(value),)
    if len(lengths) > 1 or shape not in shapes:
        came = " x ".join(map(str, shape)) if len(lengths) == 1 else "unequal lists of"
        return f"got {came} values"
    if not set(map(type, flat)) <= {int, float, type(None)}:
        number = next(i for i, x in enumerate(flat) if type(x) not in (int, float, type(None)))
        return f"number {number} is {short(flat[number])}"
    try:
        return np.array(flat, np.float64).reshape(shape)
    except OverflowError:
        return "a number is too large"


def unfit(values: Array, low: float = -LARGEST, high: float = LARGEST) -> str | None:
    """The first number that is not within bounds, in words."""
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    return None if not len(bad) else f"number {bad[0]} is {values.ravel()[bad[0]]:g}"


def is_id(value: Any) -> bool:
    """Whether a value can be an id: a whole number or a string."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def read_keypoints(entry: str, field: str, value: Any, faults: Faults) -> Array | None:
    """[21, 3] px and visibility, zeros where that is not positive; None where it is refused."""
    found = numbers(value, [(3 * NUM_JOINTS,), (NUM_JOINTS, 3)])
    if isinstance(found, str):
        _refuse_form(entry, field, value, found, faults)
        return None
    found = found.reshape(NUM_JOINTS, 3)
    is_labelled = found[:, 2] > 0
    found[~is_labelled, :2] = 0.0  # may hold anything
    bad = unfit(found)
    if bad:
        text = f"{entry}: {field} must be numbers within {LARGEST:.0e}, {bad}"
        faults.add("numbers", text, f"{field} are x, y in px and a visibility: {FORM}")
        return None
    return np.where(is_labelled[:, None], found, 0.0)


def _refuse_form(entry: str, field: str, value: Any, came: str, faults: Faults) -> None:
    fix = f"{NUM_JOINTS} keypoints of x, y, visibility are required: {FORM}"
    is_flat = isinstance(value, list) and not any(isinstance(x, list) for x in value)
    if value is None:
        faults.add("count", f"{entry} has no {field}", fix)
    elif is_flat and len(value) != 3 * NUM_JOINTS:
        two = " (two hands need two annotations)" * (len(value) == 6 * NUM_JOINTS)
        text = f"{entry} has {len(value) / 3:g} {field}, {NUM_JOINTS} are required{two}"
        faults.add("count", text, fix)
    else:
        text = f"{entry}: {field} must be {3 * NUM_JOINTS} numbers, {came}"
        faults.add("numbers", text, fix)


def read_optional(entry: str, note: Mapping[str, Any], field: str, faults: Faults) -> Array | None:
    """A field of `OPTIONAL`; None where it is missing, null or refused."""
    value = note.get(field)
    if value is None:
        return None
    kind, shapes, what, (low, high) = OPTIONAL[field]
    found, bad = numbers(value, shapes), None
    if not isinstance(found, str) and field == "keypoints_3d" and found.size == 4 * NUM_JOINTS:
        rows = found.reshape(NUM_JOINTS, 4)
        bad = unfit(rows[:, 3])
        found = np.where(rows[:, 3:] > 0, rows, 0.0)  # occluded joints may hold anything
    if isinstance(found, str) or (bad := bad or unfit(found, low, high)):
        text = f"{entry}: {field} must be {what}, {bad or found}"
        faults.add(kind, text, f"{FORM}; leave {field} out where it is not known")
        return None
    return found


@lru_cache(maxsize=1024)
def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def side_of(value: Any) -> bool | None:
    """Whether a value names the right side: "Left", "R", ["right_hand"], {"label": "Right"}.

    Returns: None for any other value, or one that names both sides.
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        found = {side_of(part) for part in value} - {None}
        return found.pop() if len(found) == 1 else None
    return _WORDS.get(_letters(value).replace("hand", "")) if isinstance(value, str) else None


def _bool_of(value: Any) -> bool | None:
    return _BOOLS.get(str(value).strip().lower())


def _fields(entry: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Fields of an entry and of objects in it, by lower-case letters of their names."""
    rows: dict[str, Any] = {}
    for value in entry.values():
        if isinstance(value, Mapping):
            rows |= value
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            pairs = (
                row for row in value if isinstance(row, Mapping) and {"name", "value"} <= set(row)
            )
            rows |= {str(row["name"]): row["value"] for row in pairs}
    rows |= entry
    return {_letters(str(key)): (str(key), value) for key, value in rows.items()}


def mentions(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Fields whose names or values mention left or right, each with a value."""
    found: dict[str, str] = {}
    for entry in entries:
        for name, value in _fields(entry).values():
            is_edge = type(value) in (int, float) and value not in (0, 1)
            text = f"{name} {value}" if isinstance(value, str) else name
            is_named = _letters(name) in _OFTEN or _MENTION.search(text.lower())
            if name not in found and not is_edge and is_named:
                found[name] = f"{name}={value!r:.40}"
    return list(found.values())


class SideReader:
    """Read the sides of the hands of one label file.

    Args:
        entries: annotations and images of the file. The fields `side` and `hand` count where any
            of them holds a side there, `label`, `type` and the like where all values are sides. 0
            and 1 in `side` or `hand` are refused where nothing else states a side.
        categories: entries of the file's `categories`. Those named left, right, L or R count where
            all of them are sides, those named left_hand or right_hand always.
    """

    def __init__(
        self, entries: Iterable[Mapping[str, Any]], categories: Iterable[Mapping[str, Any]]
    ) -> None:
        sided: dict[str, set[bool]] = {key: set() for key in (*_OFTEN, *_LOOSE)}
        spelled: dict[str, set[str]] = {key: set() for key in _OFTEN}
        for entry in entries:
            for key, (_, value) in _fields(entry).items():
                if key in sided and value is not None:
                    sided[key].add(side_of(value) is not None)
                    if key in spelled:
                        spelled[key].add(str(value))
        self._numbered = [key for key in _OFTEN if spelled[key] == {"0", "1"}]
        self._side_fields = (*_NAMED, *(key for key in _OFTEN if True in sided[key]))
        self._loose = [key for key in _LOOSE if sided[key] == {True}]
        names = {c.get("id"): c.get("name") for c in categories}
        are_all = all(side_of(name) is not None for name in names.values())
        self._of_category = {
            key: side
            for key, name in names.items()
            if (side := side_of(name)) is not None and (are_all or "hand" in str(name).lower())
        }

    def read(self, *entries: Mapping[str, Any]) -> tuple[bool, str] | None:
        """Whether a hand is a right one, and the field that states it; None where none does.

        Args:
            entries: the annotation, its image, and `info` of the file; the later ones count where
                the earlier ones state none.
        Raises: ValueError for an unknown value or fields that contradict each other.
        """
        for entry in entries:
            found = self._stated(entry)
            if len(set(found.values())) > 1:
                values = ", ".join(f"{key}={entry.get(key)!r}" for key in found)
                raise ValueError(f"states both sides ({values})")
            if found:
                return next(iter(found.values())), next(iter(found))
        for key, (name, value) in (row for entry in entries for row in _fields(entry).items()):
            if key in self._numbered:
                raise ValueError(f"has {name}={value!r}")
        return None

    def _stated(self, entry: Mapping[str, Any]) -> dict[str, bool]:
        found: dict[str, bool] = {}
        loose: dict[str, bool] = {}
        for key, (name, value) in _fields(entry).items():
            if key in _BARE_FLAGS and isinstance(value, bool):
                found[name] = value == _BARE_FLAGS[key]
            elif key in self._loose and (side := side_of(value)) is not None:
                loose[name] = side
            if value is None or not (key in self._side_fields or key in _FLAGS):
                continue
            side = side_of(value)
            if key in _FLAGS:
                flag = _bool_of(value)
                side = None if flag is None else flag == _FLAGS[key]
            if side is None:
                raise ValueError(f"has {name}={value!r:.60}")
            found[name] = side
        category = entry.get("category_id")
        if isinstance(category, int | str) and category in self._of_category:
            found["category_id"] = self._of_category[category]
        return found or loose
