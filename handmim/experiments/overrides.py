"""Hydra overrides as mappings of key to value, and what of a composed config decides a result."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from handmim.engine.identity import By, deciding, is_compared
from handmim.utils.config import resolved

Overrides = dict[str, Any]

USUAL_PRECISION = "32-true"
PROBED = ("probe", "task", "precision")  # parts of a pretraining config that decide its probe
UNQUOTED = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


def as_overrides(given: Mapping[str, Any] | Sequence[str] | None) -> Overrides:
    """Overrides by key; a list of KEY=VALUE, as a command line has it, works as well.

    Raises: HydraException for an entry of a list that is no override.
    """
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    parsed = OverridesParser.create().parse_overrides(list(given))
    return {str(o.input_line).partition("=")[0]: o.value() for o in parsed}


def merged(*parts: Mapping[str, Any]) -> Overrides:
    """Overrides in which the last value of each key counts, whatever its `+` or `~`.

    Hydra refuses two choices of one group; here a variant may revise what its table has.
    """
    last: dict[str, tuple[str, Any]] = {}
    for key, value in (item for part in parts for item in part.items()):
        last.pop(_bare(key), None)
        last[_bare(key)] = key, value
    return dict(last.values())


def _bare(key: str) -> str:
    return key.lstrip("+~")


def arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as Hydra takes them."""
    return [
        key if key.startswith("~") else f"{key}={value_text(v)}" for key, v in overrides.items()
    ]


def value_text(value: Any) -> str:
    """A plain value in Hydra's grammar; strings are quoted where they have to be."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{k}:{value_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(value_text, value))}]"
    text = str(value)
    if not isinstance(value, str) or UNQUOTED.fullmatch(text):
        return text
    # Backslashes count only before a quote.
    quoted = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + "\\'" * bool(m[2]), text)
    return f"'{quoted}'"


def decides(key: str, value: Any) -> bool:
    """Whether an override changes results; the usual precision does not, given or not."""
    if _bare(key) == "machine.precision":
        return value != USUAL_PRECISION
    return is_compared(_bare(key), By.TABLE)


def digest(plain: Any) -> str:
    """Twelve hex digits of plain containers; the order of keys does not matter."""
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def decisive(cfg: DictConfig) -> dict[str, Any]:
    """The part of a composed config that decides the result, resolved, as plain containers.

    Raises: ValueError naming the values that are missing.
    """
    plain = deciding(resolved(cfg), By.TABLE)
    machine = plain.pop("machine", {})
    return {**plain, "precision": machine.get("precision")}
