"""Fields of annotation entries as arrays, with what is wrong with them in words."""

from collections import defaultdict
from collections.abc import Sequence
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
        text = f"{entry} has {len(value) / 3:g} {field}, wanted {NUM_JOINTS}{two}"
        faults.add("count", text, fix)
    else:
        text = f"{entry}: {field} must be {3 * NUM_JOINTS} numbers, {came}"
        faults.add("numbers", text, fix)


def read_optional(entry: str, note: Row, field: str, faults: Faults) -> Array | None:
    """A field of `OPTIONAL`; None where it is missing, null or refused."""
    value = note.get(field)
    if value is None:
        return None
    kind, shapes, what, (low, high) = OPTIONAL[field]
    found, bad = numbers(value, shapes), None
    if not isinstance(found, str) and field == "keypoints_3d" and found.size == 4 * NUM_JOINTS:
        rows = found.reshape(NUM_JOINTS, 4)
        bad = unfit(rows[:, 3])
        found = np.where(rows[:, 3:] > 0, rows, 0.0)  # hidden joints may hold anything
    if isinstance(found, str) or (bad := bad or unfit(found, low, high)):
        text = f"{entry}: {field} must be {what}, {bad or found}"
        faults.add(kind, text, f"{FORM}; leave {field} out where it is not known")
        return None
    return found
