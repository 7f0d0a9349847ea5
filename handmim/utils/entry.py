"""What entry points share: words of a command line to a checked config, errors to one message and
exit code. Words are `key=value` in Hydra's grammar: there `~`, `=`, spaces, quotes, commas and
letters beyond ASCII are errors or change the meaning, so paths and names are quoted."""

import errno
import functools
import logging
import os
import re
import sys
import tempfile
import time
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from handmim.utils.config import add_key, sentence, values
from handmim.utils.files import FULL, output_problem
from handmim.utils.paths import CONFIGS, options_of
from handmim.utils.processes import (
    BAD_INPUT,
    DONE,
    FAILED,
    STALLED,
    TRAINED,
    StalledError,
    end_with_parent,
    is_first,
    of_signal,
    require_one_process,
)
from handmim.utils.renames import new_key
from handmim.utils.settings import check_settings, unlisted_key

DEBUG = "debug=true"
RUNS = ("pretrain", "finetune", "eval")  # entry points that several processes may run together
SWEEPS = ("-m", "--multirun", "hydra.mode=MULTIRUN")
LAST_WORD_S = 3.0  # in which what started this process ends it, where the main one says the same
MACHINE_FAILED = (*FULL, errno.EIO, errno.ENOMEM)

Result = TypeVar("Result")
Main = Callable[..., int | None]
# Last parts of keys that hold a path, whatever stands before them.
PATHS = (
    "root", "annotations", "path", "hand_path", "init", "init_from", "checkpoint", "checkpoints",
    "predictions", "resume", "cache_dir", "data_dir", "run_root", "photos_dir", "label_ids",
    "report", "json", "out", "profile",
)  # fmt: skip
# Whole keys that hold a path.
PATHS_OF_DOCTOR = ("freihand", "ho3d_v2", "ho3d_v3", "crops")
NAMES = ("name", "split_by", "run")
NEVER_NULL = ("root", "annotations", "cache_dir", "data_dir", "run_root", "name", "split_by")
LISTS_OF_PATHS = ("checkpoint", "checkpoints", "inits")
LISTS_OF_WORDS = ("pretrain", "finetune")
ENVIRONMENT = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")  # config keys are in lower case


def tool(config_name: str | None = None) -> Callable[[Main], Callable[[], None]]:
    """Make an entry point of a function, see `run_tool`."""
    return lambda main: functools.wraps(main)(functools.partial(run_tool, main, config_name))


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """A checked config of configs/, within an entry point or `hydra.initialize_config_dir`.
    Raises: ValueError; errors of Hydra and OmegaConf."""
    run = functools.partial(hydra.compose, config_name)
    cfg = _with_unlisted(run, hydra_overrides(overrides))
    prepare(cfg)
    return cfg


def _with_unlisted(run: Callable[[list[str]], Result], overrides: list[str]) -> Result:
    """Compose and run; settings that no yaml lists, but that their part takes, are added."""
    while True:
        try:
            return run(overrides)
        except ConfigCompositionException as error:
            key = unlisted_key(error)
            added = [f"+{o}" if o.partition("=")[0] == key else o for o in overrides]
            if added == overrides:
                raise
            overrides = added


def prepare(cfg: DictConfig) -> None:
    """Expand paths of a composed config and check its values, in place. Raises: ValueError."""
    expand_paths(cfg)
    check_settings(cfg)


def run_tool(
    main: Main,
    config_name: str | None = None,
    *,
    program: str | None = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Run an entry point, which returns its exit code or None, under configs/<config_name>.yaml or
    with sys.argv alone. Raises: SystemExit with any code but 0. ValueError, OSError and errors of
    the config give one message and code 2 where nothing was trained yet, any other error code 1.
    Tracebacks go to log.txt of the run where there is one; `debug=true` prints them as well."""
    typed = sys.argv
    program = Path(typed[0]).name if program is None else program
    arguments = typed[1:] if arguments is None else list(arguments)
    TRAINED.clear()
    try:
        end_with_parent()
        if config_name not in RUNS:
            require_one_process(program)
        if config_name is None:
            sys.argv = [program, *arguments]  # what argparse reads
            code = main()
        else:
            code = _under_hydra(main, config_name, program, arguments)
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted\n")
        code = of_signal("SIGINT")
    except Exception as error:
        code = _report(program, error)
    finally:
        sys.argv = typed
    if code:
        sys.exit(code)


def _under_hydra(main: Main, config_name: str, program: str, arguments: list[str]) -> int:
    """Exit code of a function that Hydra gives a config to."""
    codes: list[int] = []
    typed = sys.argv

    @functools.wraps(main)
    def job(cfg: DictConfig) -> None:
        sys.argv = typed  # what a run records, and what its further processes are started with
        try:
            prepare(cfg)
            codes.append(main(cfg) or DONE)
        except Exception as error:
            add_key(error, cfg)
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # a launcher sees which jobs failed
                raise
            codes.append(_report(program, error))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them
    start = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)

    def run(overrides: list[str]) -> None:
        sys.argv = [program, *overrides]
        start()

    is_sweep = any(argument in SWEEPS for argument in arguments)
    _with_unlisted(run, hydra_overrides(arguments, is_sweep=is_sweep))
    return next((code for code in codes if code), DONE)


def _report(program: str, error: Exception) -> int:
    """Print what went wrong, return the exit code. The log of the run that is under way takes the
    traceback, else a file of its own where it is no bad input."""
    if isinstance(error, CalledProcessError):  # it has said so itself
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    if not is_first():
        time.sleep(LAST_WORD_S)
    is_input = isinstance(error, (ValueError, OSError, HydraException, OmegaConfBaseException))
    is_input &= getattr(error, "errno", None) not in MACHINE_FAILED and not TRAINED.is_set()
    text = sentence(error)
    if not is_input and not isinstance(error, (OSError, ArithmeticError)):
        text = f"{type(error).__name__}: {text}"
    logger = logging.getLogger("handmim")
    files = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
    logs = [file.baseFilename for file in files]
    info = (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "ended by an error", (), info)
    for handler in files:
        handler.handle(record)
    if not is_input:
        if not files:
            handle, path = tempfile.mkstemp(prefix="handmim-error-", suffix=".txt", text=True)
            with os.fdopen(handle, "w", encoding="utf-8") as kept:
                traceback.print_exception(error, file=kept)
            logs = [path]
        text = f"{text} (traceback: {', '.join(logs)})"
    sys.stderr.write(f"{program}: {text}\n")
    if DEBUG in sys.argv:
        traceback.print_exception(error)
    if isinstance(error, StalledError) or isinstance(error.__cause__, StalledError):
        return STALLED
    return BAD_INPUT if is_input else FAILED


def hydra_overrides(typed: Iterable[str], *, is_sweep: bool = False) -> list[str]:
    """Arguments as Hydra reads them; options (`--help`) stay, and unquoted commas of a sweep.
    Raises: ValueError naming one that cannot be read, and how to quote it."""
    typed = list(typed)
    for before, word in zip(["", *typed], typed, strict=False):  # --cfg job is an option's value
        if "=" not in word and not word.startswith(("-", "~")) and not before.startswith("-"):
            raise ValueError(f"{word!r}: key=value is required (--help lists settings)")
    return [_hydra_word(word, is_sweep) for word in typed]


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
