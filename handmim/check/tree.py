"""Checks that unpacked datasets share: layout, hand model, counts, sizes of images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.data.label_files import GROUND_TRUTH, check_made_with, read_entries, read_facts
from handmim.hand.io import HandArrays
from handmim.hand.model import HandModel
from handmim.images.decode import UnreadableImage, read_image
from handmim.images.formats import printable
from handmim.utils.findings import Level, Notes, shown

NUM_THREADS = 8  # that decode images


@dataclass
class Tree:
    """An unpacked dataset and the findings on it."""

    root: Path
    key: str  # config key that names the root
    notes: Notes
    num_checked: int  # samples of each part that are checked closely
    full: bool  # decode all images
    size_px: tuple[int, int]  # width and height for which labels are; of a rendered set, its own
    metadata: dict[str, Any] | None = None  # of a rendered set
    model: HandModel | None = None  # to pose labels with

    def open(
        self, required: Sequence[str], lists: Mapping[str, str], hand: HandArrays | None
    ) -> list[str]:
        """Names of the parts whose list is there, by part; training comes first.

        Notes missing files (names with a suffix) and folders, an inner folder that is meant,
        damaged metadata, and why labels are not posed with the hand model.
        """
        paths = {name: self.root / name for name in required}
        missing = [n for n, p in paths.items() if not (p.is_file() if p.suffix else p.is_dir())]
        vital, marker = next(iter(lists.items()))
        nested = [p.parent for p in self.root.glob(f"*/{marker}")] if self.root.is_dir() else []
        text = f"missing: {shown(missing, 8)}" if missing else "every folder and list is there"
        fix = f"name the inner folder: {self.key}={nested[0]}" if nested else ""
        bad: Level = "error" if any(n.startswith(vital) for n in missing) else "warning"
        self.notes.judge(not missing, "layout", f"{self.root}: {text}", fix, bad=bad)
        parts = [part for part, name in lists.items() if (self.root / name).is_file()]
        if not parts:
            return []
        with self.notes.guard("facts", "synthesize the set again"):
            self.metadata = read_facts(self.root)
            if self.metadata:
                width, (genuine, height) = int(self.metadata["scene"]["image_px"]), self.size_px
                self.size_px = width, width * height // genuine
        if hand is None:
            text = "poses and joints are not checked: the hand model could not be read"
            self.notes.warning("hand", text, "mend hand.path first")
        elif hand.side == "left":
            text = f"{hand.name} is a left hand, the dataset's are right"
            self.notes.error("hand", text, "hand=mano hand.path=MANO_RIGHT.pkl")
        else:
            fix = "choose the hand that the set was rendered from (hand, hand.path)"
            with self.notes.guard("hand", fix):
                check_made_with(self.root, hand)
                self.notes.ok("hand", f"labels are posed again with {hand.name}")
                self.model = HandModel(hand)
        return parts

    def has_truth(self, source: str) -> bool:
        """Whether the released ground truth of the evaluation is there; half of it is odd."""
        names = [f"evaluation_{name}.json" for name in GROUND_TRUTH]
        missing = [name for name in names if not (self.root / name).is_file()]
        text = "the ground truth of the evaluation is there: scores are computed here"
        if missing:
            text = f"no {' and '.join(missing)}: predictions can be submitted, not scored "
            text += f"({source})"
        self.notes.judge(len(missing) != 1, "truth", text, source, bad="warning")
        return not missing

    def check_count(
        self, part: str, num: int, genuine: Sequence[int], name: str, fix: str = ""
    ) -> None:
        """Compare the number of samples with that of the genuine or rendered set."""
        expected, whose = genuine, f"{name} has"
        if self.metadata:
            key = "num_eval" if part == "evaluation" else "num"
            expected, whose = (self.metadata[key],), "it was rendered with"
        text = f"{part}: {num} samples, {whose} {' or '.join(map(str, expected))}"
        self.notes.judge(num in expected, "counts", text, fix, bad="warning")

    def check_sizes(self, part: str, paths: Sequence[Path]) -> None:
        """Decode images, and compare their size with that which labels are for."""
        names = [f"{path.parents[1].name}/{path.name}" for path in paths]
        sizes = Counter(decoded_sizes(self.notes, paths, names, part).values())
        text = ", ".join(f"{n} of {w} x {h} px" for (w, h), n in sizes.items()) or "none"
        text = f"{part}: {len(paths)} images decoded: {text}"
        fix = f"labels are for {self.size_px[0]} x {self.size_px[1]} px: {self.notes.fix}"
        self.notes.judge(set(sizes) <= {self.size_px}, "size", text, fix)


def decoded_sizes(
    notes: Notes,
    paths: Sequence[Path],
    names: Sequence[str],
    part: str = "the set",
    fix: str = "",
    bad: Level = "error",
) -> dict[str, tuple[int, int]]:
    """Width and height, by name, of images all of whose pixels are decoded; notes the others."""

    def size_of(path: Path) -> tuple[int, int] | str:
        try:
            height, width = read_image(path).shape[:2]
        except UnreadableImage as error:
            return error.reason
        return width, height

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        pairs = list(zip(names, pool.map(size_of, paths), strict=True))
    damaged = [f"{printable(name)} ({size})" for name, size in pairs if isinstance(size, str)]
    bad = bad if len(damaged) < len(paths) else "error"
    notes.count(damaged, len(paths), "decode", f"decoded images of {part} are damaged", fix, bad)
    return {name: size for name, size in pairs if not isinstance(size, str)}


def read_rows(
    path: Path, shape: tuple[int, ...], ids: Iterable[int]
) -> tuple[int, NDArray[np.float64]]:
    """Number of entries of a JSON list, and some of them by ascending index: [k, *shape]. One entry
    at a time is in memory."""
    chosen, count, rows = set(ids), 0, []
    for index, entry in enumerate(read_entries(path, shape)):
        count = index + 1
        if index in chosen:
            rows.append(entry.copy())
    return count, np.array(rows).reshape(-1, *shape)
