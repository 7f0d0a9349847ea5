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
from handmim.utils.file_kind import foreign_kind, is_safetensors
from handmim.utils.unpickle import UnsafePickleError, check_torch_pickle

# What torch raises for damaged files, beside refusals of its own.
DAMAGED = (
    RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, LookupError,
    AssertionError, ArithmeticError, ImportError, struct.error,
)  # fmt: skip
HEAD_BYTES = 1 << 26  # of pickles before the tensors of files before PyTorch 1.5
UNREAD = "its content is not what PyTorch writes"
# How torch names an object that is no tensor and no plain value.
OBJECT = re.compile(r"(?:GLOBAL|class|function|type) ([\w.<>']*\w+\.[\w.]+)")


def read_torch(
    path: Path, what: str, *, map_location: Any = "cpu", allow: Sequence[Any] = ()
) -> Any:
    """Read a file of torch.save; nothing in it is executed.

    Args:
        path: an existing file.
        what: the file is, for messages: "a checkpoint".
        map_location: as torch.load takes it.
        allow: classes of plain values that may stand beside tensors, or (class, name in the file).
    Raises: ValueError naming the file, for another kind of file, a damaged one, one of ours with
        another content than was written, and one with objects in it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no regular file, {what} is required")
    is_checked = has_trailer(path)
    if kind := foreign_kind(path):
        raise ValueError(f"{path} {kind}; {what} is required")
    if is_safetensors(path):
        raise ValueError(f"{path} holds safetensors, {what} is required")
    try:
        _check_pickle(path)
        # torch reads a path, unlike an open file, by its ending.
        with path.open("rb") as file, _allowing(allow):
            state = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text recommends to load such a file without its protection.
        raise ValueError(f"{path} {_refusal(str(error), what)}") from None
    except UnsafePickleError as error:
        raise ValueError(f"{path} {error}: refused, nothing in it was executed") from None
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or not {what}: {_first_line(error)}") from None
    if not is_checked and isinstance(state, dict) and CHECKED in state:
        raise ValueError(
            f"{path} is damaged: its checksum is missing at its end (a file that was changed on "
            f"purpose has no entry {CHECKED!r})"
        )
    return state


def _check_pickle(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
        if head == b"PK\x03\x04":
            data = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
        else:
            data = head + file.read(HEAD_BYTES)
    check_torch_pickle(data, path.stat().st_size)


@contextmanager
def _allowing(classes: Sequence[Any]) -> Iterator[None]:
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
    return f"is damaged or not {what}: {UNREAD}"


def _first_line(error: Exception) -> str:
    """What went wrong, without advice about how to load it nevertheless."""
    lines = str(error).strip().splitlines()
    is_said = lines and isinstance(error, (RuntimeError, OSError, ValueError))
    return lines[0][:200] if is_said and "weights_only" not in lines[0] else UNREAD
