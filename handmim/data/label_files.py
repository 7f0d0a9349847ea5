"""Label files of public hand sets: names, JSON lists of numbers as arrays, ground truth.

Lists (FreiHAND's vertices are 1.6 GB) are converted once into .npy files and read back by memory
map. No torch: rendering processes import this.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from handmim.hand.io import NUM_VERTS, HandArrays
from handmim.utils.checked_files import check_array, open_array, save_array
from handmim.utils.json_files import parse_numbers, read_object

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
GroundTruth = tuple[NDArray[np.floating], NDArray[np.floating]]

FACTS = "handmim.json"  # metadata of a rendered set; written last: with it a set is complete
PARTS = ".parts"  # folder in a rendered set until it is complete
# FreiHAND's backgrounds in the order of its images: image id = sample + number of samples * index.
VERSIONS = ("gs", "hom", "sample", "auto")
GROUND_TRUTH: dict[str, tuple[int, ...]] = {"xyz": (21, 3), "verts": (NUM_VERTS, 3)}

PIECE_BYTES = 1 << 22
# No entry of 778 points is near this long, whatever its digits and white space; nor is a gap.
LONGEST_ENTRY_BYTES = 1 << 24
# Longer entries are not parsed for a message: lists take many times the memory of their text.
LONGEST_DESCRIBED_BYTES = 1 << 20
DEPTH_BYTES = 64  # in which the first number of a list begins
NOT_SPACE = re.compile(rb"\S")
# What numbers are made of, NaN and Infinity included: the rest is an entry's structure.
NUMBER_BYTES = b"0123456789+-.eENaInfity \t\r\n"


def take_of(sequence: str) -> str:
    """The recording of an HO-3D sequence: of two final digits the second is the camera, so ABF10
    and ABF14 are of ABF1."""
    match = re.match(r"^(.*\d)\d$", sequence)
    return match.group(1) if match else sequence


def file_names(folder: Path) -> list[str]:
    """Names of the files in a folder, in no order; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.is_dir()]


def read_facts(root: Path) -> dict[str, Any] | None:
    """Metadata of a rendered dataset, None for any other. Raises: ValueError for a damaged file."""
    path = root / FACTS
    return read_object(path, needs=("hand", "hand_sha256")) if path.is_file() else None


def check_made_with(root: Path, arrays: HandArrays) -> None:
    """Raises: ValueError for labels rendered from another hand model, or not to their end."""
    facts = read_facts(root)
    if facts is None and (root / PARTS).is_dir():
        raise ValueError(f"{root} is not rendered to its end: call tools/synthesize.py again")
    if facts is not None and facts["hand_sha256"] != arrays.sha256:
        text = f"{root} was rendered from hand {facts['hand']} ({facts['hand_sha256'][:12]}), the "
        text += f"chosen one is {arrays.name} ({arrays.sha256[:12]}): set hand and hand.path to it"
        raise ValueError(text)


def short(value: Any) -> str:
    """A value as text of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def numbers(value: Any, shapes: Sequence[tuple[int, ...]]) -> Array | str:
    """A JSON list of numbers, or of equally long lists of them, as an array of one of the shapes,
    null as NaN; or in a few words what came instead."""
    if not isinstance(value, list):
        return f"got {short(value)}"
    is_nested = bool(value) and all(isinstance(row, list) for row in value)
    lengths = {len(row) for row in value} if is_nested else {0}
    flat = [x for row in value for x in row] if is_nested else value
    shape = (len(value), *lengths) if is_nested else (len(value),)
    if len(lengths) > 1 or shape not in shapes:
        came = " x ".join(map(str, shape)) if len(lengths) == 1 else "unequal lists of"
        return f"got {came} values"
    kinds = (int, float, type(None))
    if not set(map(type, flat)) <= set(kinds):
        number = next(i for i, x in enumerate(flat) if type(x) not in kinds)
        return f"number {number} is {short(flat[number])}"
    try:
        return np.array(flat, np.float64).reshape(shape)
    except OverflowError:
        return "a number is too large"


class NumberLists:
    """JSON lists of equally shaped entries of numbers, read piece by piece and entry by entry;
    messages begin with the `name` of the file and end with the required `form`."""

    def __init__(self, file: IO[bytes], name: str, form: str) -> None:
        self.file, self.name, self.form = file, name, form
        self.text, self.at = b"", 0

    def fail(self, what: str) -> NoReturn:
        """Raises: ValueError."""
        raise ValueError(f"{self.name} {what}: {self.form}")

    def entries(self, what: str, shape: tuple[int, ...]) -> Iterator[Array]:
        """The entries of the list of `what` that begins here, of this shape or nested deeper.
        Raises: ValueError naming the first entry of another form."""
        if self.next_byte() != b"[":
            self.fail(f"has no list where that of the {what} should begin")
        if self.next_byte():
            self.at -= 1
        while len(self.text) - self.at < DEPTH_BYTES and self._read_more():
            pass
        head = self.text[self.at : self.at + DEPTH_BYTES]
        depth = head[: len(head) - len(head.lstrip(b"[ \t\r\n"))].count(b"[")
        if head[:1] == b"]":
            self.at += 1
            return
        nested = (1,) * (depth - len(shape)) + shape
        structure = b""
        for size in reversed(nested):
            structure = b"[" + b",".join([structure] * size) + b"]"
        end = re.compile(rb"\]\s*" * depth or rb"(?=[,\]])")
        for index in itertools.count():
            while not (match := end.search(self.text, self.at)):
                if len(self.text) - self.at > LONGEST_ENTRY_BYTES or not self._read_more():
                    break
            start, self.at = self.at, match.end() if match else len(self.text)
            entry, values = self.text[start : self.at], np.zeros(0)
            if entry.translate(None, NUMBER_BYTES) == structure:
                with suppress(ValueError):
                    values = parse_numbers(entry)
            if len(values) != math.prod(shape):
                required = f"{' x '.join(map(str, shape)) or 'plain'} numbers are required"
                self.fail(f"entry {index} of the {what}: {_described(entry, nested)}, {required}")
            yield values.reshape(shape)
            after = self.next_byte()
            if after == b"]":
                return
            if after != b",":
                self.fail(f"is cut off or no JSON after entry {index} of the {what}")

    def next_byte(self) -> bytes:
        """The next byte that is not white space, b"" at the end."""
        gap = 0
        while not (match := NOT_SPACE.search(self.text, self.at)):
            gap += len(self.text) - self.at
            self.at = len(self.text)
            if gap > LONGEST_ENTRY_BYTES:
                self.fail(f"holds {gap / 1e6:.0f} MB of white space in a row")
            if not self._read_more():
                return b""
        self.at = match.end()
        return match[0]

    def _read_more(self) -> bool:
        piece = self.file.read(PIECE_BYTES)
        self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)


def _described(entry: bytes, shape: tuple[int, ...]) -> str:
    if len(entry) > LONGEST_DESCRIBED_BYTES:
        return f"{len(entry) / 1e6:.1f} MB of text"
    try:
        value = json.JSONDecoder().raw_decode(entry.decode("latin-1").lstrip())[0]
    except ValueError:
        return "cut off or no JSON"
    except RecursionError:
        return "lists nested too deeply"
    found = numbers(value, [shape])
    return found if isinstance(found, str) else "null is no number"


def read_entries(path: Path, shape: tuple[int, ...]) -> Iterator[Array]:
    """The entries of a JSON list of equally nested lists of numbers, one at a time. Raises:
    FileNotFoundError; ValueError naming the first entry that is not of this shape."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as file:
        lists = NumberLists(file, path.name, "damaged, cut off, or another file")
        yield from lists.entries("list", shape)
        if lists.next_byte():
            lists.fail("goes on after its list")


def read_number_lists(
    path: Path, item_shape: tuple[int, ...], dtype: str = "float64"
) -> NDArray[np.floating]:
    """`read_entries` as one array [n, *item_shape]."""
    items = [item.astype(dtype) for item in read_entries(path, item_shape)]
    return np.stack(items) if items else np.zeros((0, *item_shape), dtype)


class StoredArray:
    """An array [n, *item_shape] in a .npy file; other processes get its path, not its content."""

    def __init__(self, path: Path, item_shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.item_shape, self.dtype = path, item_shape, dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredArray, (self.path, self.item_shape, self.dtype)

    @cached_property
    def values(self) -> NDArray[np.floating]:
        """The memory map. Raises: ValueError when the file has been damaged meanwhile."""
        return open_array(self.path, self.item_shape, self.dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Array:
        return np.asarray(self.values[index], np.float64)


def cached_number_lists(
    path: Path, item_shape: tuple[int, ...], cache_dir: Path, dtype: str = "float32"
) -> StoredArray:
    """`read_number_lists` as an array in cache_dir/labels, converted when the file is new, changed,
    or its converted array damaged. Raises: OSError when the cache cannot be written."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    stat = path.stat()
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, item_shape, dtype]
    digest = hashlib.sha256(repr(state).encode()).hexdigest()
    target = cache_dir / "labels" / f"{path.stem}-{digest[:12]}.npy"
    stored = StoredArray(target, item_shape, dtype)
    if target.is_file():
        try:
            check_array(target)
            len(stored)  # opens it
            return stored
        except ValueError as error:
            log.warning("%s; converted anew from %s", error, path)
    log.info("converting %s (%.0f MB) once", path.name, stat.st_size / 1e6)
    values = read_number_lists(path, item_shape, dtype)
    try:
        save_array(target, values)
    except OSError as error:
        error.add_note(f"while writing the cache {target} (data.cache_dir)")
        raise
    return stored


def stored_ground_truth(
    root: str | Path, cache_dir: str | Path
) -> tuple[StoredArray, StoredArray] | None:
    """Released ground truth of an official evaluation: joints [n, 21, 3] and vertices [n, V, 3] in
    metres, in the benchmark's own order and axes, float64; None where a file is missing."""
    files = {Path(root) / f"evaluation_{name}.json": shape for name, shape in GROUND_TRUTH.items()}
    if not all(path.is_file() for path in files):
        return None
    cache = Path(cache_dir)
    joints, verts = (cached_number_lists(*item, cache, "float64") for item in files.items())
    if len(joints) != len(verts):
        text = f"{root}: evaluation_xyz.json has {len(joints)} entries, evaluation_verts.json "
        raise ValueError(f"{text}{len(verts)}: they are of different versions")
    return joints, verts


def find_ground_truth(root: str | Path, cache_dir: str | Path) -> GroundTruth | None:
    """The arrays of `stored_ground_truth`, or None."""
    stored = stored_ground_truth(root, cache_dir)
    return None if stored is None else (stored[0].values, stored[1].values)


def read_ground_truth(root: str | Path, cache_dir: str | Path) -> GroundTruth:
    """The arrays of `stored_ground_truth`. Raises: FileNotFoundError naming their source."""
    if (ground_truth := find_ground_truth(root, cache_dir)) is not None:
        return ground_truth
    raise FileNotFoundError(
        f"{root} lacks evaluation_xyz.json or evaluation_verts.json: unpack the released ground "
        "truth there (FreiHAND_pub_v2_eval.zip on its page; links in HO-3D's README)"
    )
