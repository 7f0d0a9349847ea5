"""Submission files of FreiHAND and HO-3D: writing them and reading them back."""

import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from handmim.evaluation.benchmarks import (
    NUM_VERTS,
    Points,
    as_points,
)
from handmim.hand.skeleton import NUM_JOINTS
from handmim.utils.files import atomic_path
from handmim.utils.json_files import parse_numbers, rows_text

MEMBER = "pred.json"
PIECE_BYTES = 1 << 22
# No entry of 778 points is near this long, whatever its digits and white space; nor is a gap.
LONGEST_ENTRY_BYTES = 1 << 24
# Longer entries are not parsed for a message: lists take many times the memory of their text.
LONGEST_DESCRIBED_BYTES = 1 << 20
# 799 points of three numbers of 17 digits, indented, have some 0.15 MB.
MB_PER_SAMPLE = 0.5
SHORTEST_POINT_BYTES = len("[0,0,0],")
ENTRY_END = re.compile(rb"\]\s*\]")
NOT_SPACE = re.compile(rb"\S")
UNREADABLE_ZIP = (BadZipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError)
# What numbers are made of, NaN and Infinity included: the rest is an entry's structure.
NUMBER_BYTES = b"0123456789+-.eENaInfity \t\r\n"


def write_submission(
    folder: str | Path, joints: Points, verts: Points, *, name: str = "pred"
) -> Path:
    """Write `<name>.json` = [joints, vertices] and the flat `<name>.zip` that is uploaded.

    Numbers are rounded to 1e-7 m. Samples are written one at a time, and the files appear under
    their names when they are whole.

    Args:
        folder: made when it is missing.
        joints: [n, 21, 3] metres, the benchmark's order and axes.
        verts: [n, 778, 3].
        name: of both files; the zip's only member is pred.json whatever the name.
    Returns: the zip.
    Raises: ValueError for other shapes, counts that differ, values not finite.
    """
    arrays = as_points("joints", joints, NUM_JOINTS), as_points("verts", verts, NUM_VERTS)
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(f"{len(arrays[0])} samples of joints and {len(arrays[1])} of vertices")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    targets = folder / f"{name}.json", folder / f"{name}.zip"
    # 800 points of three numbers of at most 30 characters
    large = len(arrays[0]) * 72_000 > 2**31
    with (
        atomic_path(targets[0]) as plain_file,
        atomic_path(targets[1]) as zip_file,
        plain_file.open("wb") as plain,
        ZipFile(zip_file, "w", ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(MEMBER, "w", force_zip64=large) as member,
    ):
        for text in _submission_text(*arrays):
            plain.write(text)
            member.write(text)
    return targets[1]


def _submission_text(*arrays: NDArray[np.floating]) -> Iterator[bytes]:
    for k, array in enumerate(arrays):
        for i, points in enumerate(array):
            yield (b"[[", b"],[")[k] if i == 0 else b","
            yield rows_text(points)
    yield b"]]"


def read_submission(
    path: str | Path, num_samples: int | None = None, mb_per_sample: float = MB_PER_SAMPLE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Joints [n, 21, 3] and vertices [n, 778, 3] of a prediction file.

    Read in pieces: beside the arrays it needs some MB. A NaN is read as one; `check_submission`
    names it.

    Args:
        path: the .json, or the .zip around it.
        num_samples: expected samples; None leaves the size of the text unbounded.
        mb_per_sample: largest size of the unpacked text per expected sample.
    Raises: FileNotFoundError; ValueError for a text above that bound, or naming the entry that
        differs from [joints, vertices].
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no prediction file {path}")
    if path.suffix != ".zip":
        _check_size(path.name, path.stat().st_size, num_samples, mb_per_sample)
        with path.open("rb") as file:
            return _PredictionFile(file, path.name, path.stat().st_size).read()
    try:
        with ZipFile(path) as archive:
            member = _member(archive, path.name)
            _check_size(path.name, member.file_size, num_samples, mb_per_sample)
            with archive.open(member) as file:
                return _PredictionFile(file, path.name, member.file_size).read()
    except UNREADABLE_ZIP as error:
        raise ValueError(f"{path.name} is no zip archive, or a damaged one: {error}") from error
    except RuntimeError as error:  # encrypted, or packed by a method that Python does not know
        raise ValueError(f"{path.name} cannot be unpacked: {error}") from error


def _check_size(name: str, num_bytes: int, num_samples: int | None, mb_per_sample: float) -> None:
    if num_samples is not None and num_bytes > num_samples * mb_per_sample * 1e6:
        raise ValueError(
            f"{name} holds {num_bytes / 1e6:.1f} MB of text for {num_samples} samples, at most "
            f"{mb_per_sample:g} MB per sample are read (predictions_mb_per_sample)"
        )


def _member(archive: ZipFile, name: str) -> ZipInfo:
    # macOS adds a folder of its own, which the evaluators never read.
    infos = [info for info in archive.infolist() if not info.filename.startswith("__MACOSX/")]
    flat = [i for i in infos if i.filename.endswith(".json") and "/" not in i.filename]
    named = [info for info in flat if info.filename == MEMBER]
    if named or len(flat) == 1:
        return (named or flat)[-1]
    found = [info.filename[:40] for info in infos[:5]]
    raise ValueError(
        f"{name} holds {found}, {MEMBER} alone is required and in no folder: zip the file itself, "
        "not the folder around it"
    )


class _PredictionFile:
    """A prediction file's text of `size` bytes, read piece by piece."""

    def __init__(self, file: IO[bytes], name: str, size: int) -> None:
        self.file, self.name, self.size, self.text, self.at = file, name, size, b"", 0

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        first = self.next_byte()
        if first != b"[":
            self.fail(f"starts with {first.decode('latin-1')!r}")
        joints = list(self.entries("joints", NUM_JOINTS))
        if self.next_byte() != b",":
            self.fail("holds one list")
        if len(joints) * NUM_VERTS * SHORTEST_POINT_BYTES > self.size + LONGEST_ENTRY_BYTES:
            self.fail(f"holds joints of {len(joints)} samples and vertices of fewer")
        verts = np.empty((len(joints), NUM_VERTS, 3))
        count = 0
        for count, points in enumerate(self.entries("vertices", NUM_VERTS), start=1):
            if count <= len(joints):
                verts[count - 1] = points
        end = self.next_byte()
        if end != b"]" or self.next_byte():
            self.fail("holds more than two lists" if end == b"," else "goes on after two lists")
        if count != len(joints):
            self.fail(f"holds joints of {len(joints)} samples and vertices of {count}")
        return np.stack(joints), verts

    def entries(self, what: str, num_points: int) -> Iterator[NDArray[np.float64]]:
        if self.next_byte() != b"[":
            self.fail(f"has no list where that of the {what} should begin")
        structure = b"[" + b",".join([b"[,,]"] * num_points) + b"]"
        for index in itertools.count():
            entry = self.entry()
            values = np.zeros(0)
            if entry.translate(None, NUMBER_BYTES) == structure:
                with suppress(ValueError):
                    values = parse_numbers(entry)
            if len(values) != 3 * num_points:
                found = self.describe(entry, num_points)
                self.fail(
                    f"has {found} as entry {index} of the {what}, {num_points} points are required"
                )
            yield values.reshape(num_points, 3)
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
            if not self.more():
                return b""
        self.at = match.end()
        return match[0]

    def entry(self) -> bytes:
        """Text up to the end of the next doubly nested list, or all that is left without one."""
        while not (match := ENTRY_END.search(self.text, self.at)):
            if len(self.text) - self.at > LONGEST_ENTRY_BYTES or not self.more():
                break
        start, self.at = self.at, match.end() if match else len(self.text)
        return self.text[start : self.at]

    def more(self) -> bool:
        piece = self.file.read(PIECE_BYTES)
        self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)

    def describe(self, entry: bytes, num_points: int) -> str:
        if len(entry) > LONGEST_DESCRIBED_BYTES:
            return f"{len(entry) / 1e6:.1f} MB of text"
        text = entry.decode("latin-1").lstrip()
        if text.startswith("]"):
            return "nothing"
        try:
            value: Any = json.JSONDecoder().raw_decode(text)[0]
        except ValueError:
            return "something cut off or no JSON"
        except RecursionError:
            return "lists nested too deeply"
        if not isinstance(value, list):
            return f"no list but {str(value)[:20]!r}"
        if not value:
            return "an empty list (a method without vertices sends 778 zeros)"
        if not all(isinstance(point, list) for point in value):
            return f"{len(value)} plain values"
        if any(len(point) != 3 for point in value) or len(value) == num_points:
            return f"{len(value)} points, not all of three numbers,"
        swapped = " (are the two lists swapped?)" if len(value) in (NUM_JOINTS, NUM_VERTS) else ""
        return f"{len(value)} points{swapped}"

    def fail(self, what: str) -> NoReturn:
        raise ValueError(
            f"{self.name} {what}: a prediction is [joints, vertices], each one entry per sample of "
            f"{NUM_JOINTS} and {NUM_VERTS} points [x, y, z]"
        )
