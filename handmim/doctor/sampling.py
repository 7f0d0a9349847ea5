"""Looking at a few entries of something large without reading all of it."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from handmim.images.decode import read_rgb
from handmim.utils.json_files import parse_json, read_json

PIECE_BYTES = 1 << 22
MAX_ENTRY_BYTES = 1 << 24  # 778 points have some 0.1 MB
NUM_THREADS = 8  # that decode images
OPEN, CLOSE = 0x5B, 0x5D  # [ and ]


def missing_of(root: Path, wanted: list[str]) -> list[str]:
    """Those of the wanted files (names with a suffix) and folders that are not below `root`."""
    there = {n: (root / n).is_file() if Path(n).suffix else (root / n).is_dir() for n in wanted}
    return [name for name, found in there.items() if not found]


def decoded_sizes(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Width and height of images, all of whose pixels are decoded; None where that fails."""

    def size_of(path: Path) -> tuple[int, int] | None:
        image = read_rgb(path)
        return None if image is None else (image.shape[1], image.shape[0])

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(size_of, paths))


class JsonEntries:
    """A JSON list whose entries are read one by one.

    The file is gone through once by its brackets (seconds per GB); only wanted entries are parsed.

    Args:
        path: file with a list of lists, or of plain numbers.
    Raises: FileNotFoundError; ValueError for a file that is cut off or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, stops, depth, offset = [], [], 0, 0
        with path.open("rb") as file:
            if not file.read(64).lstrip().startswith(b"["):
                raise ValueError(f"{path.name} does not begin like a JSON list")
            file.seek(0)
            while block := file.read(PIECE_BYTES):
                raw = np.frombuffer(block, np.uint8)
                places = np.flatnonzero((raw == OPEN) | (raw == CLOSE))
                steps = np.where(raw[places] == OPEN, 1, -1)
                after = depth + np.cumsum(steps)
                starts.append(offset + places[(after == 2) & (steps == 1)])
                stops.append(offset + places[(after == 1) & (steps == -1)] + 1)
                depth = int(after[-1]) if len(after) else depth
                offset += len(block)
        if depth != 0:
            raise ValueError(f"{path.name} is cut off: {depth} brackets are still open at its end")
        self.starts, self.stops = np.concatenate(starts), np.concatenate(stops)
        # Plain numbers have no brackets of their own, and such files are small.
        self.plain = None if len(self.starts) else read_json(path)

    def __len__(self) -> int:
        return len(self.starts) if self.plain is None else len(self.plain)

    def read(self, places: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Entries as [n, *shape], whatever their nesting.

        Raises: ValueError for an entry with another count of numbers.
        """
        if self.plain is not None:
            found = [self.plain[i] for i in places]
        else:
            with self.path.open("rb") as file:
                found = [self._entry(file, int(i)) for i in places]
        rows = [self._numbers(int(i), value) for i, value in zip(places, found, strict=True)]
        for place, row in zip(places, rows, strict=True):
            if row.size != math.prod(shape):
                raise ValueError(
                    f"entry {place} of {self.path.name} holds {row.size} numbers, wanted "
                    f"{math.prod(shape)}"
                )
        return np.array(rows).reshape(-1, *shape)

    def _numbers(self, place: int, value: Any) -> NDArray[np.float64]:
        try:
            return np.asarray(value, np.float64).ravel()
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(
                f"entry {place} of {self.path.name} holds other than numbers"
            ) from error

    def _entry(self, file: BinaryIO, place: int) -> Any:
        num_bytes, name = (
            int(self.stops[place] - self.starts[place]),
            f"entry {place} of {self.path}",
        )
        if num_bytes > MAX_ENTRY_BYTES:
            raise ValueError(f"{name} has {num_bytes / 1e6:.0f} MB: no label has")
        file.seek(int(self.starts[place]))
        return parse_json(file.read(num_bytes), name)
