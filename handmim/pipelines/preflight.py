"""Files and folders that a composed config names, checked before anything is begun or made."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from handmim.hand.io import resolve_hand_path
from handmim.utils.config import Value, values
from handmim.utils.files import output_problem
from handmim.utils.json_files import read_json

WEIGHTS = ("init", "init_from")
# What the last part of a key requires.
KINDS = {
    "annotations": "a file", "label_ids": "a file", "predictions": "a file", "root": "a folder",
    "photos_dir": "a folder", "resume": "never, auto or a checkpoint file",
}  # fmt: skip
HANDS = ("path", "hand_path")
FOLDERS_TO_BE = ("run_root", "cache_dir", "out", "profile")
FILES_TO_BE = ("json", "report")
ELSEWHERE = re.compile(r"[a-z-]+:")  # timm:NAME
MADE_BY = ("synthesis.runner.synthesize",)  # their root is what they write
FILE_ROOTS = ("handmim.data.packed.PackedCrops",)


def preflight(cfg: DictConfig, names: Sequence[str] | None = None) -> None:
    """Refuse a config with files or folders that cannot be read or written, of all keys or of
    those with a last part in `names`. Raises: ValueError naming each key, its path and what is
    required."""
    if found := path_problems(cfg, names=names):
        raise ValueError("; ".join(found))


def path_problems(
    cfg: DictConfig, *, parse: bool = False, names: Sequence[str] | None = None
) -> list[str]:
    """A sentence for each of these keys; `parse` also reads annotation files as JSON."""
    found: dict[str, str] = {}
    for used in _used(cfg):
        if not isinstance(used.value, str) or (names is not None and used.name not in names):
            continue
        problem = _problem(used)
        if problem is None and parse and used.name == "annotations":
            problem = _parse_problem(used.value, os.stat(used.value).st_mtime_ns)
            problem = None if problem is None else f"{problem} ({used.key})"
        if problem is not None:
            found.setdefault(used.key, problem)
    return list(found.values())


def _used(cfg: DictConfig) -> Iterator[Value]:
    """Values of those parts of a config that its entry point reads."""
    is_evaluation = "checkpoint" in cfg
    if is_evaluation and cfg.get("data") is not None:
        yield from values(cfg.data.get("test") or cfg.data.get("val"))
    reads_data = not is_evaluation and cfg.get("train", True)
    yield from values(cfg, [key for key in cfg if key != "data" or reads_data])


def _problem(used: Value) -> str | None:
    """What is wrong with one path; None where nothing is."""
    name, key, path, node = used
    target: Any = None if node._is_missing() else node.get("_target_")
    if name in FOLDERS_TO_BE or (name == "root" and (target in MADE_BY or key == "root")):
        return _unwritable(key, path, is_folder=True)
    if name in FILES_TO_BE:
        return _unwritable(key, path, is_folder=False)
    if name in HANDS:
        try:
            path = str(resolve_hand_path(path))
        except FileNotFoundError as error:
            return str(error)
    elif name in WEIGHTS:
        if ELSEWHERE.match(path) and not os.path.lexists(path):
            return None
    elif (
        name not in KINDS
        or (name == "resume" and path in ("never", "auto"))
        or (name == "photos_dir" and node.get("background") != "photos")
    ):
        return None
    kind = KINDS.get(name, "")
    if name == "root":
        kind = "a file" if target in FILE_ROOTS else "" if target is None else kind
    return _unreadable(key, path, kind)


def _unreadable(key: str, path: str, kind: str = "") -> str | None:
    """Why a path of a kind ("a file", "a folder", "" for either) cannot be read."""
    try:
        is_there, is_folder = os.path.exists(path), os.path.isdir(path)
    except ValueError as error:
        return f"{key}={path!r}: {error}"
    if not is_there:
        what = "a link to nothing" if os.path.islink(path) else "does not exist"
        return f"{key}={path}: {what}{f', {kind} is required' if kind else ''}"
    if kind and is_folder != (kind == "a folder"):
        return f"{key}={path}: {'a folder' if is_folder else 'no folder'}, {kind} is required"
    return None if os.access(path, os.R_OK) else f"{key}={path}: not readable"


def _unwritable(key: str, path: str, is_folder: bool) -> str | None:
    if key.endswith("cache_dir") and os.path.isdir(path):  # it may hold all that is read
        return None
    problem = output_problem(Path(path), is_folder=is_folder)
    return None if problem is None else f"{key}={path}: {problem}"


@lru_cache(maxsize=16)
def _parse_problem(path: str, mtime_ns: int) -> str | None:
    """Rows of a table name the same file: it is read once."""
    try:
        read_json(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None
