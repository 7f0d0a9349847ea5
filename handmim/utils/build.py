"""Objects from composed configs, with errors that name the config key."""

import re
import traceback
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from handmim.utils.paths import PACKAGE

TARGET = re.compile(r"target '([^']+)'")
# What libraries raise for settings that they do not check.
UNCLEAR = (TypeError, AttributeError, AssertionError, IndexError, RuntimeError)
KEY = re.compile(r"full_key: (\S+)")


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """Build what a config node describes (`hydra.utils.instantiate`).

    Args:
        node: config with `_target_`, or a mapping or list of such.
        args, kwargs: further arguments of its target.
    Returns: the object; None for a node that is null.
    Raises: what the target raises, with a note that names the config key; ValueError for arguments
        that the target does not take, for what a library says of bad settings, and for targets that
        cannot be imported.
    """
    try:
        return instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        failure = _failure(error)
    raise failure


def _failure(error: InstantiationException) -> BaseException:
    """The target's own exception, or a sentence where the target was not entered."""
    key, target = (found[1] if (found := p.search(str(error))) else "" for p in (KEY, TARGET))
    where = f"{key or 'a part of the config'}{f' ({target})' if target else ''}"
    cause = error.__cause__
    if cause is None or isinstance(cause, ImportError):
        reason = str(error).splitlines()[0] if cause is None else str(cause).splitlines()[0]
        return ValueError(f"{where} cannot be built: {reason}")
    is_unclear = type(cause) in UNCLEAR and not _is_ours(cause)
    if is_unclear or isinstance(cause, ArithmeticError):  # of a setting of 0, or beyond floats
        said = str(cause).replace("__init__()", target.rsplit(".", 1)[-1])
        refusal = ValueError(f"{where} cannot be built: {said or type(cause).__name__}")
        refusal.__cause__ = cause
        return refusal
    vars(cause).setdefault("__notes__", []).append(f"while building {where}")
    return cause


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised an error, rather than a library that it called."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(PACKAGE)
