"""Composed configs: plain containers of them, and the objects that they describe."""

import ast
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError

from handmim.utils.paths import PACKAGE

KEY = re.compile(r"full_key: (\S+)")
TARGET = re.compile(r"target '([^']+)'")
# What libraries raise for settings that they do not check.
UNCLEAR = (TypeError, AttributeError, AssertionError, IndexError, RuntimeError)
MOST_KEYS = 3  # named for one error
# Values as messages show them: a list, a quoted or a bare one; and those that follow "got".
VALUE = r"""\[[^\]]*\]|\([^)]*\)|'[^']*'|"[^"]*"|[^\s,;:()\[\]'"]+"""
GIVEN = re.compile(rf"(?:{VALUE})(?:(?:, | and )(?:{VALUE}))*")
CONFIG_WORDS = {"true": True, "false": False, "null": None}

CHOSEN = ("losses", "objectives", "heads")  # of a task: parts that are chosen by name


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain containers, interpolations filled in.

    Raises: ValueError naming every value that only the user knows and has not given: "???", or ""
        where that would not replace a default.
    """
    leaves = flatten(OmegaConf.to_container(cfg))
    missing = [key for key, value in leaves.items() if value in ("???", "")]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} must be given: "
            f"{' '.join(f'{key}=...' for key in missing)} (see --help, --cfg job)"
        )
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return plain


def drop_unbuilt(task: DictConfig) -> None:
    """Remove settings of losses, objectives and heads that were not chosen, in place.

    An experiment may tune a loss; `loss=[...]` without that loss leaves its settings behind,
    without a `_target_`.
    """
    for key in CHOSEN:
        parts = task.get(key, {})
        if not parts:
            continue
        with open_dict(parts):
            for name in [name for name in parts if "_target_" not in parts[name]]:
                del parts[name]


def set_everywhere(node: Any, key: str, value: Any) -> None:
    """Give every `key` below a node, at any depth and in lists, the same value; in place."""
    for name, child in node.items() if isinstance(node, DictConfig) else enumerate(node):
        if name == key:
            node[name] = value
        elif isinstance(child, (DictConfig, ListConfig)):
            set_everywhere(child, key, value)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Keys of two flat mappings whose values differ, each with both values."""
    return [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested plain containers by dotted path."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(config, dict) and config:
        items = config.items()
    elif isinstance(config, (list, tuple)) and config:
        items = enumerate(config)
    else:
        return {path: config}
    return {
        k: v for key, value in items for k, v in flatten(value, f"{path}.{key}".lstrip(".")).items()
    }


def flatten_keys(cfg: Any) -> list[str]:
    """Dotted keys of all leaves of a config, interpolations not followed."""
    return list(flatten(OmegaConf.to_container(cfg)))


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """Build what a config node describes (`hydra.utils.instantiate`).

    Args:
        node: config with `_target_`, or a mapping or list of such.
        args, kwargs: further arguments of its target.
    Returns: the object; None for a node that is null.
    Raises: what the target raises, with a note that names the config key, see `add_key`; ValueError
        for arguments that the target does not take, for what a library raises for bad settings,
        and for targets that cannot be imported.
    """
    try:
        return instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        failure = _failure(error, node)
    raise failure


def _failure(error: InstantiationException, node: Any) -> BaseException:
    """The target's own exception, or a sentence where the target was not entered."""
    key, target = (found[1] if (found := p.search(str(error))) else "" for p in (KEY, TARGET))
    where = f"{key or 'a part of the config'}{f' ({target})' if target else ''}"
    cause = error.__cause__
    if cause is None or isinstance(cause, ImportError):
        reason = str(error).splitlines()[0] if cause is None else str(cause).splitlines()[0]
        return ValueError(f"{where} cannot be built: {reason}")
    is_unclear = type(cause) in UNCLEAR and not _is_ours(cause)
    if is_unclear or isinstance(cause, ArithmeticError):  # of a setting of 0, or beyond floats
        text = str(cause).replace("__init__()", target.rsplit(".", 1)[-1])
        refusal = ValueError(f"{where} cannot be built: {text or type(cause).__name__}")
        refusal.__cause__ = cause
        return refusal
    add_key(cause, node, key)
    return cause


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised an error, rather than a library that it called."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(PACKAGE)


def add_key(error: BaseException, config: Any, otherwise: str = "") -> None:
    """Add a note to an error that names the config keys it is about, once.

    A key is meant where the text holds its last part and its value ("scale must be > 0, got -1",
    "scale=-1"), or its value alone where that is a path. A text that names a key gets no note.

    Args:
        config: searched, interpolations followed.
        otherwise: the note where no key is found.
    """
    if getattr(error, "has_key", False) or not isinstance(error, (ValueError, OSError)):
        return
    text = str(error)
    if _names_a_key(text, config):
        return
    keys = dict.fromkeys(
        key for name, key, value in _values(config) if _is_about(text, name, value)
    )
    note = ", ".join(keys) if 0 < len(keys) <= MOST_KEYS else otherwise
    if note and not _holds(text, note):
        vars(error).setdefault("__notes__", []).append(note)  # add_note of Python 3.11
        vars(error)["has_key"] = True


def _holds(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w|\.\w)", text) is not None


def _names_a_key(text: str, config: Any) -> bool:
    """Whether a text names a dotted key of the whole config that a node belongs to."""
    if not isinstance(config, DictConfig):
        return False
    return any("." in key and _holds(text, key) for key in flatten_keys(config._get_root()))


def _values(node: Any) -> Iterator[tuple[str, str, Any]]:
    """Name, full key and plain value of every value below a node; a list is one value."""
    for name in node if isinstance(node, DictConfig) and not node._is_none() else ():
        child: Any = node._get_node(name)
        try:
            source = child._dereference_node() if child._is_interpolation() else child
        except InterpolationResolutionError:
            continue
        if source is None or source._is_missing():
            continue
        if isinstance(source, DictConfig) and not source._is_none():
            yield from _values(source)
        elif isinstance(source, ListConfig) and not source._is_none():
            yield str(name), source._get_full_key(None), OmegaConf.to_container(source)
        else:
            yield str(name), source._get_full_key(None), source._value()


def _is_about(text: str, name: str, value: Any) -> bool:
    if isinstance(value, str) and "/" in value.rstrip("/"):
        path = re.escape(value.rstrip("/"))
        if re.search(rf"(?:^|(?<=[\s('\"=])){path}/?(?=$|[\s,;:)'\"]|\.(?:\s|$))", text):
            return True
    before, _, after = text.partition("got ")
    shown = re.findall(rf"(?<![\w.]){re.escape(name)}(?:=|: | )({VALUE})", text)
    if after and _holds(before, name) and (given := GIVEN.match(after)):
        shown += re.findall(VALUE, given[0])
    return any(_is_shown(value, _parsed(one.rstrip("."))) for one in shown)


def _parsed(text: str) -> Any:
    """A value as a message shows it, in Python's words or those of a config."""
    if text in CONFIG_WORDS:
        return CONFIG_WORDS[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _is_shown(value: Any, shown: Any) -> bool:
    """Equality where 2 is 2.0 but not True, and a list is a tuple."""
    if isinstance(value, (list, tuple)) and isinstance(shown, (list, tuple)):
        return len(value) == len(shown) and all(map(_is_shown, value, shown))
    if isinstance(value, bool) or isinstance(shown, bool):
        return value is shown
    return bool(value == shown)
