"""PyTorch files of others: tensors and plain values alone, refused in our own words."""

import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from handmim.utils.checksums import CHECKED, has_trailer
from handmim.utils.file_kind import foreign_kind

# What torch raises for damaged files, beside refusals of its own.
DAMAGED = (
    RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, LookupError,
    AssertionError, ArithmeticError, ImportError, struct.error,
)  # fmt: skip
# How torch names an object that is no tensor and no plain value.
OBJECT = re.compile(r"(?:GLOBAL|class|function|type) ([\w.<>']*\w+\.[\w.]+)")


def read_torch(
    path: Path, what: str, *, map_location: Any = "cpu", allow: Sequence[type] = ()
) -> Any:
    """Read a file of torch.save; nothing in it is executed.

    Args:
        path: an existing file.
        what: the file is, for messages: "a checkpoint".
        map_location: as torch.load takes it.
        allow: classes of plain values that may stand beside tensors.
    Raises: ValueError naming the file, for another kind of file, a damaged one, one of ours with
        another content than was written, and one with objects in it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no regular file, {what} is required")
    is_checked = has_trailer(path)
    if kind := foreign_kind(path):
        raise ValueError(f"{path} {kind}; {what} is required")
    try:
        # torch reads a path, unlike an open file, by its ending.
        with path.open("rb") as file, _allowing(allow):
            state = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text recommends to load such a file without its protection.
        raise ValueError(f"{path} {_refusal(str(error), what)}") from None
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or not {what}: {_first_line(error)}") from None
    if not is_checked and isinstance(state, dict) and CHECKED in state:
        raise ValueError(
            f"{path} is damaged: its checksum is missing at its end (a file that was changed on "
            f"purpose has no entry {CHECKED!r})"
        )
    return state


@contextmanager
def _allowing(classes: Sequence[type]) -> Iterator[None]:
    with torch.serialization.safe_globals(list(classes)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle protocols of others
        yield


def _refusal(text: str, what: str) -> str:
    """Words about what torch refused to unpickle."""
    if found := OBJECT.search(text):
        return (
            f"holds more than tensors and plain values ({found[1]}), and loading that could run "
            "code: refused. Save its state dict alone, where you trust it"
        )
    return f"is damaged or not {what}: its pickle cannot be read"


def _first_line(error: Exception) -> str:
    """What went wrong, without advice about how to load it nevertheless."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return "its content cannot be read" if "weights_only" in text else text[:200]
