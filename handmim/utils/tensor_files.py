"""Files of tensors: of torch.save and safetensors, ours or foreign; nothing in a file is executed.

Metadata `sha256` of our safetensors is the digest of the file with zeros in its place.
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from handmim.utils.checked_files import CHECKED, CHUNK, has_trailer
from handmim.utils.files import ARCHIVE, DAMAGE, KIND_BYTES, atomic_path, foreign_kind
from handmim.utils.unpickle import UnsafePickleError, check_torch_pickle

MAX_HEADER = 100_000_000  # of safetensors: the format's own bound
LENGTH_BYTES = 8  # before that header
DIGEST = "sha256"
ZEROS = b"0" * 64
HEAD_BYTES = 1 << 26  # of pickles before the tensors of files before PyTorch 1.5
UNREAD = "its content is not what PyTorch writes"
# How torch names an object that is no tensor and no plain value.
OBJECT = re.compile(r"(?:GLOBAL|class|function|type) ([\w.<>']*\w+\.[\w.]+)")


def read_torch(
    path: Path, what: str, *, map_location: Any = "cpu", allow: Sequence[Any] = ()
) -> Any:
    """Read an existing file of torch.save ("a checkpoint" and such in messages).

    `allow` are classes of plain values that may stand beside tensors, or (class, name in the file).
    Raises: ValueError naming a file that is foreign, damaged, not what was written or holds
    objects.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no regular file, {what} is required")
    is_checked = has_trailer(path)
    if kind := no_tensors(path):
        raise ValueError(f"{path} {kind}; {what} is required")
    if is_safetensors(path):
        raise ValueError(f"{path} holds safetensors, {what} is required")
    try:
        # torch reads a path, unlike an open file, by its ending.
        with path.open("rb") as file, warnings.catch_warnings():
            data = file.read(HEAD_BYTES)
            if data.startswith(b"PK\x03\x04"):
                data = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
            check_torch_pickle(data, path.stat().st_size)
            file.seek(0)
            warnings.simplefilter("ignore")  # about the pickle protocols of others
            with torch.serialization.safe_globals(list(allow)):
                state = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text recommends to load such a file without its protection.
        reason = f"is damaged or not {what}: {UNREAD}"
        if found := OBJECT.search(str(error)):
            reason = (
                f"holds more than tensors and plain values ({found[1]}), and loading that could "
                "run code: refused. Save its state dict alone, where you trust it"
            )
        raise ValueError(f"{path} {reason}") from None
    except UnsafePickleError as error:
        raise ValueError(f"{path} {error}: refused, nothing in it was executed") from None
    except (*DAMAGE, OSError) as error:
        # Without torch's advice about how to load the file nevertheless.
        is_plain = isinstance(error, (RuntimeError, OSError, ValueError))
        line = str(error).strip().partition("\n")[0][:200]
        reason = line if is_plain and line and "weights_only" not in line else UNREAD
        raise ValueError(f"{path} is damaged or not {what}: {reason}") from None
    if not is_checked and isinstance(state, dict) and CHECKED in state:
        raise ValueError(
            f"{path} is damaged: its checksum is missing at its end (a file that was changed on "
            f"purpose has no entry {CHECKED!r})"
        )
    return state


def no_tensors(path: Path) -> str | None:
    """What a file is that holds no tensors, as `foreign_kind`; None for one that may."""
    with path.open("rb") as file:
        head = file.read(KIND_BYTES)
    if head.strip(b"\0") and is_safetensors(path):
        return None
    if not head.startswith(b"PK"):
        is_broken = path.suffix == ".safetensors" and not head.startswith(b"\x80")
        broken = "is damaged: it has no header of safetensors" if is_broken else None
        return foreign_kind(head) or broken
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (*DAMAGE, OSError):
        return "is cut off or damaged: a zip archive without its end, as half a download leaves it"
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript program, a state dict is required"
    if not any(name.endswith("data.pkl") for name in names):
        return f"is a zip archive of other files ({', '.join(names[:2])}){ARCHIVE}"
    if sum(entry.file_size for entry in entries) > 2 * path.stat().st_size + 1_000_000:
        return "is a compressed archive, which PyTorch does not write: refused for its size"
    return None


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and length <= MAX_HEADER


def save_weights(weights: Mapping[str, Tensor], path: Path, meta: Mapping[str, str]) -> None:
    """Write tensors and text metadata whole or not at all, with a digest in the metadata.

    Raises: OSError for a full disk; ValueError for weights that are not finite.
    """
    bad = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"{path} was not written: {len(bad)} weights ({bad[0]}) are not finite")
    with atomic_path(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        filled = {**meta, CHECKED: DIGEST, DIGEST: ZEROS.decode()}
        save_file(dict(weights), partial, metadata=filled)
        partial.chmod(mode)  # safetensors lets nobody but the owner read, whatever the umask
        with partial.open("rb+") as file:
            offset = LENGTH_BYTES + _header(file).find(ZEROS)
            digest = _digest(file, offset)
            file.seek(offset)
            file.write(digest)


def check_weights(path: Path) -> None:
    """Compare a file of `save_weights` with its digest; ValueError for another content."""
    with path.open("rb") as file:
        header = _header(file)
        try:
            meta = json.loads(header)["__metadata__"]
            recorded = meta.get(DIGEST), meta.get(CHECKED)
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            return  # no file of ours; its reader names the fault
        if recorded == (None, None):
            return
        written = str(recorded[0]).encode()
        offset = LENGTH_BYTES + header.find(written)
        if len(written) != len(ZEROS) or _digest(file, offset) != written:
            raise ValueError(f"{path} is damaged: its content is not what was written")


def _header(file: BinaryIO) -> bytes:
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    return file.read(min(length, MAX_HEADER))


def _digest(file: BinaryIO, offset: int) -> bytes:
    """SHA-256 of a file, in hex, with zeros at `offset`."""
    file.seek(0)
    found = hashlib.sha256(file.read(offset) + ZEROS)
    file.seek(offset + len(ZEROS))
    while piece := file.read(CHUNK):
        found.update(piece)
    return found.hexdigest().encode()
