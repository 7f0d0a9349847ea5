"""Files and folders that a composed config names, checked before anything is begun or made."""

import os
import re
from collections.abc import Sequence
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
FOLDERS_TO_BE = ("run_root", "cache_dir", "out", "profile")
FILES_TO_BE = ("json", "report")
ELSEWHERE = re.compile(r"[a-z-]+:")  # timm:NAME
WRITER = "synthesis.runner.synthesize"  # its root is what it writes
PACKED = "handmim.data.packed.PackedCrops"  # its root is a file


def preflight(cfg: DictConfig, names: Sequence[str] | None = None) -> None:
    """Refuse a config with files or folders that cannot be read or written, of all keys or of
    those with a last part in `names`. Raises: ValueError naming each key, its path and what is
    required."""
    if found := path_problems(cfg, names=names):
        raise ValueError("; ".join(found))


def path_problems(
    cfg: DictConfig, *, parse: bool = False, names: Sequence[str] | None = None
) -> list[str]:
    """A sentence for each of these keys, of the parts of a config that its entry point reads;
    `parse` also reads annotation files as JSON."""
    is_evaluation = "checkpoint" in cfg
    reads_data = not is_evaluation and cfg.get("train", True)
    used = [*values(cfg, [key for key in cfg if key != "data" or reads_data])]
    if is_evaluation and cfg.get("data") is not None:
        used += values(cfg.data.get("test") or cfg.data.get("val"))
    found: dict[str, str] = {}
    for each in used:
        if not isinstance(each.value, str) or (names is not None and each.name not in names):
            continue
        problem = _problem(each)
        if problem is None and parse and each.name == "annotations":
            problem = _parse_problem(each.value, os.stat(each.value).st_mtime_ns)
            problem = None if problem is None else f"{problem} ({each.key})"
        if problem is not None:
            found.setdefault(each.key, problem)
    return list(found.values())


def _problem(used: Value) -> str | None:
    """What is wrong with one path; None where nothing is."""
    name, key, path, node = used
    target: Any = None if node._is_missing() else node.get("_target_")
    is_made = name == "root" and (target == WRITER or key == "root")
    if is_made or name in (*FOLDERS_TO_BE, *FILES_TO_BE):
        if name == "cache_dir" and os.path.isdir(path):  # it may hold all that is read
            return None
        problem = output_problem(Path(path), is_folder=name not in FILES_TO_BE)
        return problem and f"{key}={path}: {problem}"
    kind = KINDS.get(name, "")
    if name in ("path", "hand_path"):
        try:
            path = str(resolve_hand_path(path))
        except FileNotFoundError as error:
            return str(error)
    elif name == "root":
        kind = "a file" if target == PACKED else "" if target is None else kind
    elif (
        name not in (*KINDS, *WEIGHTS)
        or (name in WEIGHTS and ELSEWHERE.match(path) and not os.path.lexists(path))
        or (name == "resume" and path in ("never", "auto"))
        or (name == "photos_dir" and node.get("background") != "photos")
    ):
        return None
    try:
        is_there, is_folder = os.path.exists(path), os.path.isdir(path)
    except ValueError as error:
        return f"{key}={path!r}: {error}"
    required = f", {kind} is required" if kind else ""
    if not is_there:
        what = "a link to nothing" if os.path.islink(path) else "does not exist"
        return f"{key}={path}: {what}{required}"
    if kind and is_folder != (kind == "a folder"):
        return f"{key}={path}: {'a folder' if is_folder else 'no folder'}{required}"
    return None if os.access(path, os.R_OK) else f"{key}={path}: not readable"


@lru_cache(maxsize=16)
def _parse_problem(path: str, mtime_ns: int) -> str | None:
    """Rows of a table name the same file: it is read once."""
    try:
        read_json(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None
