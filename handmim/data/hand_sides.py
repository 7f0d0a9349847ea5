"""The side of a labelled hand, in the forms in which public label files state it."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

KNOWN = (
    "handedness, hand_type, hand_side, side or hand: left or right; is_left or is_right: true or "
    "false; or a category named left_hand or right_hand"
)
_NAMED = ("handedness", "handtype", "handside")
_LOOSE = ("side", "hand")  # also used for other things, such as palm and back
_FLAGS = {"isright": True, "isrighthand": True, "isleft": False, "islefthand": False}
_WORDS = {"left": False, "l": False, "lh": False, "right": True, "r": True, "rh": True}
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@lru_cache(maxsize=1024)
def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def side_of_word(value: Any) -> bool | None:
    """Whether a word names the right side: "Left", "R", "right_hand"; None for any other value."""
    if not isinstance(value, str):
        return None
    return _WORDS.get(_letters(value).replace("hand", ""))


def _truth_of(value: Any) -> bool | None:
    return _TRUTH.get(str(value).strip().lower())


def _fields(entry: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Fields of an entry and of its `attributes`, by lower-case letters of their names."""
    nested = entry.get("attributes")
    rows = {**(nested if isinstance(nested, Mapping) else {}), **entry}
    return {_letters(str(key)): (key, value) for key, value in rows.items()}


class SideReader:
    """Read the sides of the hands of one label file.

    Args:
        annotations: entries of the file. The fields `side` and `hand` count where any entry holds
            a side there.
        categories: entries of the file's `categories`.
    """

    def __init__(
        self, annotations: list[Mapping[str, Any]], categories: list[Mapping[str, Any]]
    ) -> None:
        loose = {
            key
            for entry in annotations
            for key, (_, value) in _fields(entry).items()
            if key in _LOOSE and side_of_word(value) is not None
        }
        self._words = (*_NAMED, *sorted(loose))
        sides = {c.get("id"): side_of_word(c.get("name")) for c in categories}
        self._of_category = {key: side for key, side in sides.items() if side is not None}

    def read(self, *entries: Mapping[str, Any]) -> tuple[bool, str] | None:
        """Whether a hand is a right one, and the field that states it; None where none does.

        Args:
            entries: the annotation, then its image; an image counts where the annotation is silent.
        Raises: ValueError for an unknown value or fields that contradict each other.
        """
        for entry in entries:
            found = self._stated(entry)
            if len(set(found.values())) > 1:
                values = ", ".join(f"{key}={entry.get(key)!r}" for key in found)
                raise ValueError(f"states both sides ({values})")
            if found:
                return next(iter(found.values())), next(iter(found))
        return None

    def _stated(self, entry: Mapping[str, Any]) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for key, (name, value) in _fields(entry).items():
            if value is None or not (key in self._words or key in _FLAGS):
                continue
            side = side_of_word(value)
            if key in _FLAGS:
                truth = _truth_of(value)
                side = None if truth is None else truth == _FLAGS[key]
            if side is None:
                raise ValueError(f"has {name}={value!r:.60}")
            found[name] = side
        category = entry.get("category_id")
        if isinstance(category, int | str) and category in self._of_category:
            found["category_id"] = self._of_category[category]
        return found
