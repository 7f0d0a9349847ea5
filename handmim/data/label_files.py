"""Label files of FreiHAND and HO-3D: names, JSON lists of numbers as arrays, ground truth.

FreiHAND's vertices are 1.6 GB of text. The text is read in pieces, the numbers go straight into an
array, which is kept as .npy in a cache folder and read back by memory map. No torch: rendering
processes import this module.
"""

import hashlib
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.hand.arrays import NUM_VERTS
from handmim.utils.arrays import check_array, open_array, save_array
from handmim.utils.json_files import parse_numbers

log = logging.getLogger(__name__)

FACTS = "handmim.json"  # metadata of a rendered set; written last: with it a set is complete
PARTS = ".parts"  # folder in a rendered set until it is complete
# FreiHAND's backgrounds in the order of its images: image id = sample + number of samples * index.
VERSIONS = ("gs", "hom", "sample", "auto")
GROUND_TRUTH: dict[str, tuple[int, ...]] = {"xyz": (21, 3), "verts": (NUM_VERTS, 3)}

PIECE_BYTES = 1 << 23
# White space and brackets around one number: no program that writes such lists makes as many.
LONGEST_NUMBER_BYTES, MAX_BRACKETS_PER_NUMBER = 1 << 24, 16
BETWEEN_NUMBERS = b"[], \n\r\t"
GroundTruth = tuple[NDArray[np.floating], NDArray[np.floating]]


def take_of(sequence: str) -> str:
    """The recording of an HO-3D sequence: of two final digits the second is the camera.

    ABF10 and ABF14 are of ABF1, MC1 is a recording of its own.
    """
    match = re.match(r"^(.*\d)\d$", sequence)
    return match.group(1) if match else sequence


def file_names(folder: Path) -> list[str]:
    """Names of the files in a folder, in no order; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.is_dir()]


class StoredArray:
    """An array on disk, read by memory map; other processes get its path, not its content.

    Args:
        path: .npy file.
        item_shape: shape behind the first axis.
        dtype: of the numbers.
    """

    def __init__(self, path: Path, item_shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.item_shape, self.dtype = path, item_shape, dtype
        self._map: NDArray[np.floating] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}

    @property
    def values(self) -> NDArray[np.floating]:
        """The memory map.

        Raises: ValueError when the file has been damaged meanwhile.
        """
        if self._map is None:
            self._map = open_array(self.path, self.item_shape, self.dtype)
        return self._map

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> NDArray[np.float64]:
        return np.asarray(self.values[index], np.float64)


def read_number_lists(path: Path, item_shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A JSON list of equally nested lists of numbers.

    Args:
        path: file.
        item_shape: shape of one entry, () for plain numbers.
    Returns: [n, *item_shape]. Only the count of numbers is checked, not the nesting in an entry.
    Raises: FileNotFoundError; ValueError for anything but numbers, for a count that is no multiple
        of an entry's, or when brackets outnumber the numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    pieces, rest, num_brackets = [np.zeros(0)], b"", 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        if not file.read().rstrip().endswith(b"]"):
            raise ValueError(f"{path.name} does not end like a JSON list: cut off or another file")
        file.seek(0)
        is_end = False
        while not is_end:
            block = file.read(PIECE_BYTES)
            is_end = not block
            num_brackets += block.count(b"[")
            text = rest + block
            cut = len(text) if is_end else text.rfind(b",") + 1  # a number may go on
            text, rest = text[:cut], text[cut:]
            if len(rest) > LONGEST_NUMBER_BYTES:
                raise _no_numbers(path, f"{len(rest) / 1e6:.0f} MB without a comma")
            if text.strip(BETWEEN_NUMBERS):
                try:
                    pieces.append(parse_numbers(text.rstrip(BETWEEN_NUMBERS)))
                except ValueError as error:
                    raise _no_numbers(path, str(error)) from error
    numbers = np.concatenate(pieces)
    if num_brackets > MAX_BRACKETS_PER_NUMBER * (len(numbers) + 1):
        raise _no_numbers(path, f"{num_brackets} opening brackets and {len(numbers)} numbers")
    per_item = math.prod(item_shape)
    if len(numbers) % per_item:
        raise ValueError(
            f"{path.name} holds {len(numbers)} numbers, a multiple of {per_item} is required "
            f"({'x'.join(map(str, item_shape))} per sample): damaged or another file"
        )
    return numbers.reshape(-1, *item_shape)


def _no_numbers(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path.name} is not a JSON list of numbers: {reason}")


def cached_number_lists(
    path: Path, item_shape: tuple[int, ...], cache_dir: Path, dtype: str = "float32"
) -> StoredArray:
    """`read_number_lists` as an array on disk, converted when the file is new or changed.

    A converted array that is damaged, or lacks its CRC-32, is converted anew.

    Args:
        path: JSON file.
        item_shape: shape of one entry.
        cache_dir: whose folder labels/ keeps the converted array.
        dtype: of the stored numbers; scores require float64.
    Raises: FileNotFoundError; ValueError for other content; OSError when the cache cannot be
        written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    state: list[Any] = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    digest = hashlib.sha256(repr([*state, item_shape, dtype]).encode()).hexdigest()
    target = cache_dir / "labels" / f"{path.stem}-{digest[:12]}.npy"
    stored = StoredArray(target, item_shape, dtype)
    if target.is_file():
        try:
            check_array(target)
            len(stored)  # opens it
            return stored
        except ValueError as error:
            log.warning("%s; converted anew from %s", error, path)
    log.info("converting %s (%.0f MB) once", path.name, path.stat().st_size / 1e6)
    values = read_number_lists(path, item_shape).astype(dtype)
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
    metres, in the benchmark's own order and axes; None where a file is missing.

    Raises: ValueError for unequal counts.
    """
    paths = {name: Path(root) / f"evaluation_{name}.json" for name in GROUND_TRUTH}
    if not all(path.is_file() for path in paths.values()):
        return None
    joints, verts = (
        cached_number_lists(paths[name], shape, Path(cache_dir), "float64")
        for name, shape in GROUND_TRUTH.items()
    )
    if len(joints) != len(verts):
        raise ValueError(
            f"{root}: evaluation_xyz.json has {len(joints)} entries, evaluation_verts.json "
            f"{len(verts)}: they are of different versions"
        )
    return joints, verts


def find_ground_truth(root: str | Path, cache_dir: str | Path) -> GroundTruth | None:
    """The arrays of `stored_ground_truth`, or None."""
    stored = stored_ground_truth(root, cache_dir)
    return None if stored is None else (stored[0].values, stored[1].values)


def read_ground_truth(root: str | Path, cache_dir: str | Path) -> GroundTruth:
    """The arrays of `stored_ground_truth`.

    Raises: FileNotFoundError saying where the ground truth comes from.
    """
    ground_truth = find_ground_truth(root, cache_dir)
    if ground_truth is None:
        raise FileNotFoundError(
            f"{root} lacks evaluation_xyz.json or evaluation_verts.json: unpack the released "
            "ground truth there (FreiHAND_pub_v2_eval.zip on its page; links in HO-3D's README)"
        )
    return ground_truth
