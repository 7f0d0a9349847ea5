"""Files and folders that a composed config names, checked before anything is begun or made."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import InterpolationResolutionError

from handmim.hand.io import resolve_hand_path
from handmim.utils.files import output_problem
from handmim.utils.json_files import read_json

FILES = ("annotations", "label_ids", "predictions")
WEIGHTS = ("init", "init_from")
HANDS = ("path", "hand_path")
FOLDERS_TO_BE = ("run_root", "cache_dir", "out", "profile")
FILES_TO_BE = ("json", "report")
ELSEWHERE = re.compile(r"[a-z-]+:")  # timm:NAME
MADE_BY = ("synthesis.runner.synthesize",)  # their root is what they write
FILE_ROOTS = ("handmim.data.packed.PackedCrops",)


class Named(NamedTuple):
    """A path in a config.

    Attributes:
        key: where it was given, interpolations followed.
        name: last part of the key that it is given to.
        path: as given.
        node: mapping that it is given to.
    """

    key: str
    name: str
    path: str
    node: DictConfig


def preflight(cfg: DictConfig, names: Sequence[str] | None = None) -> None:
    """Refuse a config that names files or folders that cannot be read or written.

    Args:
        cfg: of any entry point; it stays as it is.
        names: last parts of the keys that are checked; None for all.
    Raises: ValueError naming each key, its path and what is required.
    """
    if found := path_problems(cfg, names=names):
        raise ValueError("; ".join(found))


def path_problems(
    cfg: DictConfig, *, parse: bool = False, names: Sequence[str] | None = None
) -> list[str]:
    """What is wrong with the paths of a config, one sentence per key.

    Args:
        cfg: of any entry point; it stays as it is.
        parse: also read annotation files as JSON.
        names: last parts of the keys that are checked; None for all.
    """
    found: dict[str, str] = {}
    for named in _used_paths(cfg):
        problem = _problem(named) if names is None or named.name in names else None
        if problem is None and parse and named.name == "annotations":
            problem = _parse_problem(named.path, named.key)
        if problem is not None:
            found.setdefault(named.key, problem)
    return list(found.values())


def _used_paths(cfg: DictConfig) -> Iterator[Named]:
    """Paths of those parts of a config that its entry point reads."""
    data = cfg.get("data")
    if data is not None and "checkpoint" in cfg:  # an evaluation
        yield from _paths(data.get("test") or data.get("val"))
    for key in cfg:
        if key != "data" or ("checkpoint" not in cfg and cfg.get("train", True)):
            yield from _paths(cfg, [str(key)])


def _paths(node: Any, keys: list[str] | None = None) -> Iterator[Named]:
    """Paths below a node, or below those of its keys."""
    if node is None or node._is_none() or node._is_interpolation() or node._is_missing():
        return
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            child = node._get_node(index)
            if isinstance(child, (DictConfig, ListConfig)):
                yield from _paths(child)
        return
    for key in node if keys is None else keys:
        child = node._get_node(key)
        if isinstance(child, (DictConfig, ListConfig)):
            yield from _paths(child)
            continue
        try:
            source = child._dereference_node() if child._is_interpolation() else child
        except InterpolationResolutionError:
            continue
        if source is None or source._is_missing() or not isinstance(source._value(), str):
            continue
        yield Named(source._get_full_key(None) or str(key), str(key), source._value(), node)


def _problem(named: Named) -> str | None:
    """What is wrong with one path; None where nothing is."""
    name, path, key = named.name, named.path, named.key
    target = None if named.node._is_missing() else named.node.get("_target_")
    if name in FOLDERS_TO_BE or (name == "root" and (target in MADE_BY or key == "root")):
        return _unwritable(key, path, is_folder=True)
    if name in FILES_TO_BE:
        return _unwritable(key, path, is_folder=False)
    if name == "root":
        kind = "a file" if target in FILE_ROOTS else "a folder"
        return _readable(key, path, kind if target is not None else "")
    if name == "resume":
        known = path in ("never", "auto")
        return None if known else _readable(key, path, "never, auto or a checkpoint file")
    if name in FILES:
        return _readable(key, path, "a file")
    if name in WEIGHTS and not (ELSEWHERE.match(path) and not os.path.lexists(path)):
        return _readable(key, path)
    if name in HANDS:
        try:
            return _readable(key, str(resolve_hand_path(path)))
        except FileNotFoundError as error:
            return str(error)
    if name == "photos_dir" and named.node.get("background") == "photos":
        return _readable(key, path, "a folder")
    return None


def _readable(key: str, path: str, kind: str = "") -> str | None:
    """Whether a path is there, of a kind ("a file", "a folder", "" for either), and readable."""
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


def _parse_problem(path: str, key: str) -> str | None:
    return _parsed(path, os.stat(path).st_mtime_ns, key)


@lru_cache(maxsize=16)
def _parsed(path: str, mtime_ns: int, key: str) -> str | None:
    """Rows of a table name the same file: it is read once."""
    try:
        read_json(path, option=key)
    except (ValueError, OSError) as error:
        return str(error)
    return None
