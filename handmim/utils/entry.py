"""What entry points share: overrides to a checked config, errors to one message and exit code."""

import errno
import functools
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CalledProcessError
from typing import TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from handmim.utils.config import add_key, sentence
from handmim.utils.files import FULL
from handmim.utils.overrides import expand_paths, hydra_overrides
from handmim.utils.paths import CONFIGS
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
from handmim.utils.settings import check_settings, unlisted_key

DEBUG = "debug=true"
RUNS = ("pretrain", "finetune", "eval")  # entry points that several processes may run together
SWEEPS = ("-m", "--multirun", "hydra.mode=MULTIRUN")
LAST_WORD_S = 3.0  # in which what started this process ends it, where the main one says the same
MACHINE_FAILED = (*FULL, errno.EIO, errno.ENOMEM)

Result = TypeVar("Result")
Main = Callable[..., int | None]


def tool(config_name: str | None = None) -> Callable[[Main], Callable[[], None]]:
    """Make an entry point of a function, see `run_tool`."""
    return lambda main: functools.wraps(main)(functools.partial(run_tool, main, config_name))


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """A checked config of configs/, within an entry point or `hydra.initialize_config_dir`.
    Raises: ValueError; errors of Hydra and OmegaConf."""
    cfg = _with_unlisted(
        functools.partial(hydra.compose, config_name), hydra_overrides(overrides, config_name)
    )
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
    _with_unlisted(run, hydra_overrides(arguments, config_name, is_sweep))
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
