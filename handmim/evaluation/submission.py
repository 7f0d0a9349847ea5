"""Submission files of FreiHAND and HO-3D: writing them and reading them back."""

import lzma
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from handmim.data.label_files import LONGEST_ENTRY_BYTES, NumberLists
from handmim.evaluation.benchmarks import NUM_VERTS, Points, as_points
from handmim.hand.skeleton import NUM_JOINTS
from handmim.utils.files import atomic_path
from handmim.utils.json_files import rows_text

MEMBER = "pred.json"
# 799 points of three numbers of 17 digits, indented, have some 0.15 MB.
MB_PER_SAMPLE = 0.5
SHORTEST_POINT_BYTES = len("[0,0,0],")
UNREADABLE_ZIP = (BadZipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError)
FORM = (
    f"a prediction is [joints, vertices], each one entry per sample of {NUM_JOINTS} and "
    f"{NUM_VERTS} points [x, y, z], zeros where a method has no vertices"
)
Hands = tuple[NDArray[np.float64], NDArray[np.float64]]


def write_submission(
    folder: str | Path, joints: Points, verts: Points, *, name: str = "pred"
) -> Path:
    """Write `<name>.json` = [joints, vertices] and the flat `<name>.zip` that is uploaded, its
    path.

    [n, 21, 3] and [n, 778, 3] metres in the benchmark's order and axes, rounded to 1e-7 m; the
    zip's only member is pred.json. The files appear under their names when they are whole.
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
) -> Hands:
    """Joints [n, 21, 3] and vertices [n, 778, 3] of a .json or the .zip around it, read in pieces.

    NaN is read; `check_submission` names it. `num_samples` bounds the size of the unpacked text.
    Raises: FileNotFoundError; ValueError for a text above that bound, or naming the entry that
        differs from [joints, vertices].
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no prediction file {path}")
    try:
        with ExitStack() as stack:
            size = path.stat().st_size
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            if path.suffix == ".zip":
                archive = stack.enter_context(ZipFile(file))
                member = _member(archive, path.name)
                size, file = member.file_size, stack.enter_context(archive.open(member))
            if num_samples is not None and size > num_samples * mb_per_sample * 1e6:
                raise ValueError(
                    f"{path.name} holds {size / 1e6:.1f} MB of text for {num_samples} samples, at "
                    f"most {mb_per_sample:g} MB per sample are read (predictions_mb_per_sample)"
                )
            return read_hands(file, path.name, size)
    except UNREADABLE_ZIP as error:
        raise ValueError(f"{path.name} is no zip archive, or a damaged one: {error}") from error
    except RuntimeError as error:  # encrypted, or packed by a method that Python does not know
        raise ValueError(f"{path.name} cannot be unpacked: {error}") from error


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


def read_hands(file: IO[bytes], name: str, size: int) -> Hands:
    """`read_submission` of a text of `size` bytes."""
    lists = NumberLists(file, name, FORM)
    first = lists.next_byte()
    if first != b"[":
        lists.fail(f"starts with {first.decode('latin-1')!r}")
    try:
        joints = list(lists.entries("joints", (NUM_JOINTS, 3)))
    except ValueError as error:
        if f"got {NUM_VERTS} x 3" in str(error):
            error.add_note("are the two lists swapped?")
        raise
    if not joints:
        lists.fail("holds no samples")
    if lists.next_byte() != b",":
        lists.fail("holds one list")
    if len(joints) * NUM_VERTS * SHORTEST_POINT_BYTES > size + LONGEST_ENTRY_BYTES:
        lists.fail(f"holds joints of {len(joints)} samples and vertices of fewer")
    verts = np.empty((len(joints), NUM_VERTS, 3))
    count = 0
    for count, points in enumerate(lists.entries("vertices", (NUM_VERTS, 3)), start=1):
        if count <= len(joints):
            verts[count - 1] = points
    end = lists.next_byte()
    if end != b"]" or lists.next_byte():
        lists.fail("holds more than two lists" if end == b"," else "goes on after two lists")
    if count != len(joints):
        lists.fail(f"holds joints of {len(joints)} samples and vertices of {count}")
    return np.stack(joints), verts
