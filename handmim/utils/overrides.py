"""Arguments of a command line, `key=value`, as overrides in Hydra's grammar: there `~`, `=`,
spaces, quotes, commas and letters beyond ASCII are errors or change the meaning, so paths and names
are quoted."""

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig

from handmim.utils.config import values
from handmim.utils.files import output_problem
from handmim.utils.paths import options_of
from handmim.utils.renames import OLD_OPTIONS, new_key, written_out

# Last parts of keys that hold a path, whatever stands before them.
PATHS = (
    "root", "annotations", "path", "hand_path", "init", "init_from", "checkpoint", "predictions",
    "resume", "cache_dir", "data_dir", "run_root", "photos_dir", "label_ids", "report", "json",
    "out", "profile",
)  # fmt: skip
# Whole keys that hold a path.
PATHS_OF_DOCTOR = ("freihand", "ho3d_v2", "ho3d_v3", "crops")
NAMES = ("name", "split_by", "run")
NEVER_NULL = ("root", "annotations", "cache_dir", "data_dir", "run_root", "name", "split_by")
LISTS_OF_PATHS = ("checkpoint", "inits")
LISTS_OF_WORDS = ("pretrain", "finetune")
ENVIRONMENT = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")  # config keys are in lower case


def hydra_overrides(typed: Iterable[str], root: str = "", is_sweep: bool = False) -> list[str]:
    """Arguments as Hydra reads them for configs/`root`.yaml; options (`--help`) stay, and unquoted
    commas of a sweep. Raises: ValueError naming one that cannot be read, and how to quote it."""
    typed = list(typed)
    for before, word in zip(["", *typed], typed, strict=False):  # --cfg job is an option's value
        if "=" not in word and not word.startswith(("-", "~")) and not before.startswith("-"):
            raise ValueError(f"{word!r}: key=value is required (--help lists settings)")
    ordered = sorted(typed, key=lambda word: word not in OLD_OPTIONS)  # later ones count more
    return [_hydra_word(new, is_sweep) for word in ordered for new in written_out(word, root)]


def _hydra_word(word: str, is_sweep: bool) -> str:
    key, equals, value = word.partition("=")
    if word.startswith("-") or not (equals or word.startswith("~")):
        return word
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key}={value!a} is no UTF-8 text, as a config must be") from error
    if (renamed := new_key(word.lstrip("+~"))) is not None:
        raise ValueError(f"{word}: renamed, write {renamed}")
    if not equals:
        return word
    value = ENVIRONMENT.sub(lambda m: os.environ.get(m[1], m[0]), value)
    with suppress(HydraException):
        if is_sweep and _parsed(f"{key}={value}").is_sweep_override():
            return f"{key}={value}"
    name = key.lstrip("+")
    last = name.rsplit(".", 1)[-1]
    if name in LISTS_OF_WORDS and value not in ("null", "") and not value.startswith("{"):
        value = _quoted_list(value if value.startswith("[") else f"[{value}]")
    elif name in LISTS_OF_PATHS and value.startswith("[") and value.endswith("]"):
        value = _quoted_list(value)
    elif is_path(name) or name in NAMES or last == "split_by":
        is_null = value == "null" and not (last in NEVER_NULL and os.path.lexists(value))
        value = value if is_null else quoted(value)
    try:
        read = _parsed(f"{key}={value}").value()
    except HydraException as error:
        raise ValueError(
            f"{word!r} cannot be read ({str(error).splitlines()[0]}): a value with other "
            f"characters than letters, digits and /-+.$%*@?| needs quotes inside quotes, "
            f"{key}='\"...\"'"
        ) from error
    if (options := options_of(name)) and not isinstance(read, (str, list)):
        raise ValueError(f"{word}: one of {', '.join(options)} is required ({name}=)")
    if options and isinstance(read, list) and len(set(map(str, read))) < len(read):
        raise ValueError(f"{word}: one name is there twice ({name}=)")
    return f"{key}={value}"


def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def is_path(key: str) -> bool:
    """Whether a dotted key holds a path."""
    return key.rsplit(".", 1)[-1] in PATHS or key in PATHS_OF_DOCTOR


def quoted(value: str) -> str:
    """Text in quotes as Hydra reads them, quoted once. `${...}` is part of it where a file of that
    name exists, else it stands for another key."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        with suppress(HydraException):
            if isinstance(_parsed(f"key={value}").value(), str):
                return value
        value = value[1:-1]  # it's, in quotes that were meant for Hydra
    if "${" in value and os.path.lexists(value):
        value = value.replace("${", "\\${")
    text: str = QuotedString(value, Quote.single).with_quotes()
    return text


def _quoted_list(value: str) -> str:
    """A list in brackets with each of its parts quoted."""
    parts: list[str] = []
    for piece in value[1:-1].split(","):
        if parts and _is_open(parts[-1]):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece.strip())
    return f"[{','.join(quoted(part.strip()) for part in parts if part.strip())}]"


def _is_open(part: str) -> bool:
    """Whether a quote or a bracket of a part of a list is not closed."""
    if part[:1] in ("'", '"'):
        return len(part) < 2 or not part.rstrip().endswith(part[0])
    return any(part.count(a) > part.count(b) for a, b in ("()", "[]", "{}"))


def user_path(text: str) -> str:
    """A path with `~` and variables expanded, unless a file of that very name exists."""
    return text if os.path.lexists(text) else os.path.expandvars(os.path.expanduser(text))


def given_path(text: str) -> Path:
    """A path of a command line (argparse: type=given_path)."""
    return Path(user_path(text))


def given_output(text: str) -> Path:
    """A file to write (argparse: type=given_output). Raises: ArgumentTypeError."""
    path = given_path(text)
    if problem := output_problem(path):
        raise ArgumentTypeError(f"{text}: {problem}")
    return path


def expand_paths(cfg: DictConfig) -> None:
    """Expand `~` and variables of the environment in all paths of a config, in place."""
    for name, key, value, node in values(cfg):
        held: Any = node._get_node(name)
        if (is_path(key) or key in LISTS_OF_PATHS) and not held._is_interpolation():
            if isinstance(value, str):
                node[name] = user_path(value)
            elif isinstance(value, list):
                node[name] = [user_path(each) for each in value]
