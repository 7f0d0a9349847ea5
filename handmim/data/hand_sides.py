"""The side of a hand in the usual forms of annotation files."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

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
# Whether true means right. The edges of boxes have the last four names: only booleans count there.
_FLAGS = {"isright": True, "isrighthand": True, "isleft": False, "islefthand": False}
_BARE_FLAGS = {"right": True, "righthand": True, "left": False, "lefthand": False}
_WORDS = {"left": False, "l": False, "lh": False, "right": True, "r": True, "rh": True}
_MENTION = re.compile(r"(?<![a-z])(left|right)")  # brightness and copyright do not
_BOOLS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@lru_cache(maxsize=1024)
def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def side_of(value: Any) -> bool | None:
    """Whether a value names the right side: "Left", "R", ["right_hand"], {"label": "Right"}; None
    for any other value, or one that names both sides."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        found = {side_of(part) for part in value} - {None}
        return found.pop() if len(found) == 1 else None
    return _WORDS.get(_letters(value).replace("hand", "")) if isinstance(value, str) else None


def _fields(entry: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Fields of an entry and of objects in it, by lower-case letters of their names."""
    rows: dict[str, Any] = {}
    for value in entry.values():
        if isinstance(value, Mapping):
            rows |= value
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for row in value:
                if isinstance(row, Mapping) and {"name", "value"} <= set(row):
                    rows[str(row["name"])] = row["value"]
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

    The fields `side` and `hand` count where any entry has a side there, `label`, `type` and the
    like where all values are sides; 0 and 1 in `side` or `hand` are refused where nothing else
    states one. Categories named left, right, L or R count where all of them are sides, those named
    left_hand or right_hand always.
    """

    def __init__(
        self, entries: Iterable[Mapping[str, Any]], categories: Iterable[Mapping[str, Any]]
    ) -> None:
        values: dict[str, list[Any]] = {key: [] for key in (*_OFTEN, *_LOOSE)}
        for entry in entries:
            for key, (_, value) in _fields(entry).items():
                if key in values and value is not None:
                    values[key].append(value)
        sided = {key: {side_of(value) is not None for value in values[key]} for key in values}
        self._numbered = [key for key in _OFTEN if set(map(str, values[key])) == {"0", "1"}]
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
        """Whether a hand is a right one, and the field of the first entry that states it; None
        where none does. Raises: ValueError for an unknown value or fields that contradict."""
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
            side = side_of(value)
            if key in self._loose and side is not None:
                loose[name] = side
            is_flag = key in _FLAGS or (key in _BARE_FLAGS and isinstance(value, bool))
            if is_flag:
                flag = _BOOLS.get(str(value).strip().lower())
                side = None if flag is None else flag == (_FLAGS | _BARE_FLAGS)[key]
            if value is not None and (is_flag or key in self._side_fields):
                if side is None:
                    raise ValueError(f"has {name}={value!r:.60}")
                found[name] = side
        category = entry.get("category_id")
        if isinstance(category, int | str) and category in self._of_category:
            found["category_id"] = self._of_category[category]
        return found or loose
