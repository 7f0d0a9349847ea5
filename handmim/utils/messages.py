"""An error as one sentence for a user."""

import re
from difflib import get_close_matches
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from handmim.utils.config import flatten_keys
from handmim.utils.paths import CONFIGS, options_of
from handmim.utils.processes import GOES_ON

SHOWN = 12
# What gloo and NCCL say where another process of a run is gone or silent.
OF_PEERS = re.compile(r"gloo/transport/|Connection (closed|reset) by peer|ncclRemoteError")


def sentence(error: BaseException) -> str:
    """What an error says, on one line, notes included.

    Args:
        error: of Hydra, of OmegaConf, or any other.
    """
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        error = cause
    if isinstance(error, MissingConfigException):
        return _no_option(error)
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and error.full_key:
        return _no_key(error)
    text = str(error)
    if isinstance(error, RuntimeError) and OF_PEERS.search(text):
        return (
            "another process of this run ended or does not answer, its own message says why; "
            f"{GOES_ON}"
        )
    if isinstance(error, OmegaConfBaseException):
        text = f"{text.splitlines()[0]}{f' ({error.full_key})' if error.full_key else ''}"
    elif isinstance(error, OSError) and error.strerror is not None:
        names = [str(n) for n in (error.filename, error.filename2) if n is not None]
        text = f"{' to '.join(names)}{': ' * bool(names)}{error.strerror}"
    notes = " ".join(f"({note})" for note in getattr(error, "__notes__", ()))
    return re.sub(r"\s*\n\s*", "; ", f"{text} {notes}".strip()) or type(error).__name__


def _no_option(error: MissingConfigException) -> str:
    said = str(error).splitlines()[0]
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = list(error.options or options_of(group))
    close = meant(option, options)
    listed = f"; {group}= takes {', '.join(options)}" if options else ""
    return f"{said}{close}{listed}"


def _no_key(error: OmegaConfBaseException) -> str:
    key, parent = str(error.full_key), error.parent_node
    if not isinstance(parent, DictConfig):
        return f"no such setting: {key}"
    beside = [str(parent._get_full_key(name)) for name in parent]
    everywhere = flatten_keys(parent._get_root())
    named = [k for k in everywhere if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    groups = [path.name for path in CONFIGS.glob("*/")]
    close = meant(key, beside) or meant(key, named, cutoff=0.0) or meant(key, everywhere + groups)
    listed = "" if close or len(beside) > SHOWN else f"; there are {', '.join(beside)}"
    return f"no such setting: {key}{close}{listed} (--cfg job prints all)"


def meant(word: str, known: list[str], cutoff: float = 0.6) -> str:
    """What a misspelt word was meant to be, as the end of a sentence; "" where nothing is close."""
    close: list[Any] = get_close_matches(word, known, n=1, cutoff=cutoff)
    return f", did you mean {close[0]}?" if close else ""
