"""Composed configs: plain containers of them, the objects that they describe, and errors as one
sentence that names the key."""

import re
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from handmim.utils.arguments import meant
from handmim.utils.paths import CONFIGS, PACKAGE, options_of
from handmim.utils.processes import GOES_ON

CHOSEN = ("losses", "objectives", "heads")  # of a task: parts that are chosen by name
KEY = re.compile(r"full_key: (\S+)")
TARGET = re.compile(r"target '([^']+)'")
# What libraries raise for settings that they do not check.
UNCLEAR = (TypeError, AttributeError, AssertionError, IndexError, RuntimeError)
MOST_KEYS = 3  # named for one error
MOST_BESIDE = 12  # keys listed beside one that is unknown
FOLDERS = ("root", "photos_dir")  # an error about a file in them is about them
# Values as messages show them: a list, a quoted or a bare one; and those that follow "got".
VALUE = r"""\[[^\]]*\]|\([^)]*\)|'[^']*'|"[^"]*"|[^\s,;:()\[\]'"]+"""
GIVEN = re.compile(rf"(?:{VALUE})(?:(?:, | and )(?:{VALUE}))*")
BRACKETS = str.maketrans("()", "[]")
OPTION = re.compile(r"\([a-z_.]+=")  # a text that ends so names a setting
NO_GROUP = re.compile(r"Could not override '([^']+)'\.")  # what Hydra says
# What gloo and NCCL say where another process of a run is gone or silent.
OF_PEERS = re.compile(r"gloo/transport/|Connection (closed|reset) by peer|ncclRemoteError")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain containers, interpolations filled in. Raises: ValueError naming
    every value that only the user knows: "???", or "" where that would not replace a default."""
    leaves = flatten(OmegaConf.to_container(cfg))
    missing = [key for key, value in leaves.items() if value in ("???", "")]
    if missing:
        required = " ".join(f"{key}=..." for key in missing)
        raise ValueError(f"{', '.join(missing)} must be given: {required} (see --help, --cfg job)")
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return plain


def drop_unbuilt(task: DictConfig) -> None:
    """Remove settings of losses, objectives and heads that were not chosen, in place: an experiment
    may tune a loss that `loss=[...]` leaves out."""
    for key in CHOSEN:
        if parts := task.get(key):
            with open_dict(parts):
                for name in [name for name in parts if "_target_" not in parts[name]]:
                    del parts[name]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Keys of two flat mappings whose values differ, each with both values."""
    return [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested plain containers by dotted path."""
    if not isinstance(config, (dict, list, tuple)) or not config:
        return {path: config}
    items: Any = config.items() if isinstance(config, dict) else enumerate(config)
    return {
        k: v for key, value in items for k, v in flatten(value, f"{path}.{key}".lstrip(".")).items()
    }


def source_of(node: DictConfig, name: Any) -> Any:
    """The node that gives a value, interpolations followed; None for one that is yet to be given,
    and for an interpolation that fails, which whoever resolves the whole config says."""
    held: Any = node._get_node(name)
    try:
        source = held._dereference_node() if held._is_interpolation() else held
    except InterpolationResolutionError:
        return None
    return None if source is None or source._is_missing() else source


class Value(NamedTuple):
    """A plain value of a config: last part of its key, the key that gives it, and its mapping."""

    name: str
    key: str
    value: Any
    node: DictConfig


def values(node: Any, names: Collection[Any] | None = None) -> Iterator[Value]:
    """Values below a node, or some names of it; interpolations followed, a list is one value."""
    if isinstance(node, ListConfig) and not node._is_none():
        for index in range(len(node)):
            yield from values(node._get_node(index))
    is_mapping = isinstance(node, DictConfig) and not node._is_none()
    for name in (node if names is None else names) if is_mapping else ():
        if (source := source_of(node, name)) is None:
            continue
        if not isinstance(source, DictConfig) or source._is_none():
            is_list = isinstance(source, ListConfig)
            plain = OmegaConf.to_container(source) if is_list else source._value()
            yield Value(str(name), source._get_full_key(None) or str(name), plain, node)
        yield from values(source)


def set_everywhere(node: Any, key: str, value: Any) -> None:
    """Give every `key` below a node, at any depth and in lists, the same value; in place."""
    for name, child in node.items() if isinstance(node, DictConfig) else enumerate(node):
        if name == key:
            node[name] = value
        elif isinstance(child, (DictConfig, ListConfig)):
            set_everywhere(child, key, value)


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """Build what a node with `_target_`, or a mapping or list of such, describes; null is None.
    Raises: what the target raises, with the note of `add_key`; ValueError for arguments that it
    does not take, for what a library raises for bad settings, and for targets that cannot be
    imported."""
    try:
        return instantiate(node, *args, **kwargs)
    except InstantiationException as caught:
        error = caught
    key, target = (found[1] if (found := p.search(str(error))) else "" for p in (KEY, TARGET))
    where = f"{key or 'a part of the config'}{f' ({target})' if target else ''} cannot be built"
    cause = error.__cause__
    if cause is None or isinstance(cause, ImportError):
        raise ValueError(f"{where}: {' '.join(str(cause or error).splitlines()[:2])}")
    raised_in = Path(traceback.extract_tb(cause.__traceback__)[-1].filename)
    is_unclear = type(cause) in UNCLEAR and not raised_in.is_relative_to(PACKAGE)
    if is_unclear or isinstance(cause, ArithmeticError):  # of a setting of 0, or beyond floats
        text = str(cause).replace("__init__()", target.rsplit(".", 1)[-1])
        raise ValueError(f"{where}: {text or type(cause).__name__}") from cause
    add_key(cause, node, key)
    raise cause


def add_key(error: BaseException, config: Any, otherwise: str = "") -> None:
    """Add a note to an error, once, that names the config keys it is about, or `otherwise`. A key
    is meant where the text holds its last part and its value ("scale must be > 0, got -1",
    "scale=-1"), its path alone, or a file in the folder that it names. A text that names a key
    gets no note."""
    if getattr(error, "__notes__", ()) or not isinstance(error, (ValueError, OSError)):
        return
    text = str(error)
    is_config = isinstance(config, DictConfig)
    every = flatten(OmegaConf.to_container(config._get_root())) if is_config else ()
    if any("." in key and _holds(text, key) for key in every):
        return
    given = list(values(config))
    shown = [v.key for v in given if _is_shown(text, v.name, v.value)]
    within = [v.key for v in given if v.name in FOLDERS and _has_path(text, v.value, "/")]
    keys = dict.fromkeys(shown or within)
    otherwise = "" if OPTION.search(text) else otherwise
    note = ", ".join(keys) if 0 < len(keys) <= MOST_KEYS else otherwise
    if note and not _holds(text, note):
        vars(error)["__notes__"] = [note]  # add_note of Python 3.11


def _holds(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w|\.\w)", text) is not None


def _has_path(text: str, value: Any, tail: str = "") -> bool:
    """Whether a text shows a path, followed by `tail`."""
    if not isinstance(value, str) or not value.strip("/"):
        return False
    end = tail or r"/?(?=$|[\s,;:)'\"]|\.(?:\s|$))"
    return bool(re.search(rf"(?:^|(?<=[\s('\"=])){re.escape(value.rstrip('/'))}{end}", text))


def _is_shown(text: str, name: str, value: Any) -> bool:
    if name != "_target_" and re.search(r"[/.]", str(value)) and _has_path(text, value):
        return True
    before, _, after = text.partition("got ")
    shown = re.findall(rf"(?<![\w.]){re.escape(name)}(?:=|: | )({VALUE})", text)
    if after and _holds(before, name) and (given := GIVEN.match(after)):
        shown += re.findall(VALUE, given[0])
    return _canonical(value) in (_canonical(one.rstrip(".")) for one in shown)


def _canonical(value: Any) -> str:
    """Text of a value, the same for 2 and 2.0, a list and a tuple, None and null."""
    text = str(value).translate(BRACKETS).strip("'\"").lower().replace("null", "none")
    return re.sub(r"\.0\b|,(?=\])", "", text)


def sentence(error: BaseException) -> str:
    """What an error of Hydra, of OmegaConf or any other says, on one line, notes included."""
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        error = cause
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        options = list(error.options or options_of(group))
        listed = f"; {group}= takes {', '.join(options)}" if options else ""
        return f"{str(error).splitlines()[0]}{meant(option, options)}{listed}"
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and error.full_key:
        return _no_key(error)
    text = str(error)
    if isinstance(error, ConfigCompositionException) and (named := NO_GROUP.match(text)):
        return f"no group {named[1]}= in this config (--help lists its groups)"
    if isinstance(error, RuntimeError) and OF_PEERS.search(text):
        lost = "another process of this run ended or does not answer, its own message says why"
        return f"{lost}; {GOES_ON}"
    if isinstance(error, OmegaConfBaseException):
        text = f"{text.splitlines()[0]}{f' ({error.full_key})' if error.full_key else ''}"
    elif isinstance(error, OSError) and error.strerror is not None:
        names = [str(n) for n in (error.filename, error.filename2) if n is not None]
        text = f"{' to '.join(names)}{': ' * bool(names)}{error.strerror}"
    notes = " ".join(f"({note})" for note in getattr(error, "__notes__", ()))
    return re.sub(r"\s*\n\s*", "; ", f"{text} {notes}".strip()) or type(error).__name__


def _no_key(error: OmegaConfBaseException) -> str:
    key, parent = str(error.full_key), error.parent_node
    groups = [path.name for path in CONFIGS.glob("*/")]
    if key in groups:
        return f"no such setting: {key}.*, unless {key}= is one of {', '.join(options_of(key))}"
    if not isinstance(parent, DictConfig):
        return f"no such setting: {key}"
    beside = [str(parent._get_full_key(name)) for name in parent]
    everywhere = list(flatten(OmegaConf.to_container(parent._get_root())))
    named = [k for k in everywhere if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    close = meant(key, beside) or meant(key, named, cutoff=0.0) or meant(key, everywhere + groups)
    listed = "" if close or len(beside) > MOST_BESIDE else f"; there are {', '.join(beside)}"
    return f"no such setting: {key}{close}{listed} (--cfg job prints all)"
