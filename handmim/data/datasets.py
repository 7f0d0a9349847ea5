"""What datasets may offer beside samples, subsets of their labels, and mixtures of them.

A dataset may have `source` (what it is), `hand_sha256` (of its labels' hand model), `label_of(i)`
(where samples share labels), `label_id(i)` (a label's name) and `fingerprint()`: a digest of its
content, which stays when files move. A file of label ids has one per line below a few comments.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from handmim.types import HandSample
from handmim.utils.files import write_atomic
from handmim.utils.findings import spread

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16  # of a file whose content counts
SHOWN = 5  # ids in a message
MAX_BYTES = 1 << 26  # of a file of ids: some millions
HEAD = " labels of "  # in the first comment; the second holds the sha256
SHA = re.compile(r"^# sha256 [^:\n]*: ([0-9a-f]{64})$", re.MULTILINE)


def size_of(dataset: Dataset[Any]) -> int:
    """Number of samples."""
    return len(cast(Sized, dataset))


def label_id_of(dataset: Dataset[Any], index: int) -> str:
    """The dataset's own id of the label of a sample; its number in sets without ids."""
    if isinstance(dataset, Subset):
        return label_id_of(dataset.dataset, dataset.indices[index])
    name = getattr(dataset, "label_id", getattr(dataset, "label_of", str))
    return str(name(index))


def label_ids(dataset: Dataset[Any]) -> list[str]:
    """Ids of all labels of a set, or of a subset of one, in its order."""
    return list(dict.fromkeys(label_id_of(dataset, i) for i in range(size_of(dataset))))


def source_of(dataset: Dataset[Any]) -> str:
    """The dataset's own description; its class where it has none."""
    return str(getattr(dataset, "source", type(dataset).__name__))


def hand_sha256_of(dataset: Dataset[Any]) -> str | None:
    """Digest of the hand model of the labels; None where labels come from no model."""
    return getattr(dataset, "hand_sha256", None)


def fingerprint_of(dataset: Dataset[Any]) -> str | None:
    """Fingerprint of a dataset, of the whole one for a subset; None where it has none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    fingerprint = getattr(dataset, "fingerprint", None)
    return None if fingerprint is None else str(fingerprint())


def split_text(name: str, split: str, val_fraction: float, seed: int, by: str = "") -> str:
    """A part of a set in words, for files of label ids; `by` is what a split keeps together."""
    if split not in ("train", "val"):
        return f"{name}, part {split}"
    cut = f"val_fraction {val_fraction:g}{by and f' by {by}'}, split seed {seed}"
    return f"{name}, part {split}, {cut}"


def refuse_empty(split: str, source: str | Path, num: int, val_fraction: float) -> None:
    """Raises: ValueError for a part without samples."""
    if not num:
        raise ValueError(f"split {split} of {source} is empty (val_fraction={val_fraction})")


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 of texts and bytes, each separated from the next, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def files_digest(root: Path, names: Sequence[str]) -> str:
    """Digest of files by their paths relative to a folder; a missing file counts as such."""
    sizes = [text for name in names for text in (name, str(_content(root / name, 0)[0]))]
    return digest_of(*sizes, *(_content(root / names[i])[1] for i in spread(len(names))))


def arrays_digest(arrays: Iterable[Any]) -> str:
    """Digest of arrays [n, ...] by their shapes and some rows."""
    parts: list[str | bytes] = []
    for array in arrays:
        rows = np.stack([np.asarray(array[i]) for i in spread(len(array))])
        parts += [f"{len(array)} {rows.dtype} {rows.shape}", rows.tobytes()]
    return digest_of(*parts)


def copies(root: Path, names: Sequence[str]) -> tuple[int, int]:
    """Number of copies among some of the files, and number of compared files."""
    contents = [_content(root / names[i]) for i in spread(len(names))]
    return len(contents) - len(set(contents)), len(contents)


def _content(path: Path, num_bytes: int = READ_BYTES) -> tuple[int, bytes]:
    """Size and first bytes of a file; -1 and none where they cannot be read."""
    size = -1
    with suppress(OSError):
        size = path.stat().st_size
        if num_bytes and path.is_file():  # opening a pipe would wait forever
            with path.open("rb") as file:
                return size, file.read(num_bytes)
    return size, b""


def drawn_labels(total: int, num: int, seed: int) -> NDArray[np.int64]:
    """Indices of `num` of `total` labels in the order of the draw; fewer are the first of more."""
    return np.random.default_rng([seed, total]).permutation(total)[:num]


def share_of_labels(total: int, fraction: float) -> int:
    """Number of labels of a share, one at least. Raises: ValueError for a share outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction must be in (0, 1], got {fraction}")
    return max(1, round(fraction * total))


def label_subset(dataset: Dataset[HandSample], num: int | None, seed: int) -> Dataset[HandSample]:
    """All samples of `num` random labels, which depend on (labels of the dataset, seed) only; the
    first 50 of 100 are the 50, None keeps all. Raises: ValueError when there are not that many."""
    ids = label_ids(dataset)
    if num is None or num == len(ids):
        return dataset
    if not 0 < num < len(ids):
        raise ValueError(f"num_labels must be in 1..{len(ids)}, got {num}")
    return subset_of_ids(dataset, [ids[i] for i in drawn_labels(len(ids), num, seed)])


def lines_sha256(ids: Sequence[str]) -> str:
    """SHA-256 of the ids as lines, without comments."""
    return hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()


def ids_text(ids: Sequence[str], source: str, num_all: int, choice: str) -> str:
    """Content of a file of ids out of the `num_all` of a source, chosen by "seed 0"."""
    head = f"# {len(ids)} of {num_all} labels of {source}; {choice}"
    digest = f"# sha256 of the lines without #: {lines_sha256(ids)}"
    return "".join(f"{line}\n" for line in (head, digest, *ids))


def write_ids(path: Path, subset: Subset[HandSample], choice: str) -> None:
    """Write the ids of a subset's labels; the file is complete or absent."""
    whole = subset.dataset
    text = ids_text(label_ids(subset), source_of(whole), len(label_ids(whole)), choice)
    write_atomic(path, text)


def read_ids(path: str | Path) -> list[str]:
    """Ids of a file, in its order. Raises: FileNotFoundError; ValueError for a file without ids,
    with an id twice, or with other ids than its sha256 states."""
    path, option = Path(path), "(label_ids=FILE)"
    if not path.is_file():
        raise FileNotFoundError(f"no file of label ids at {path} {option}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, at most {MAX_BYTES} are read {option}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text of label ids: {error} {option}") from error
    lines = [line.strip() for line in text.splitlines()]
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids or len(set(ids)) < len(ids):
        text = f"{path} has {len(ids)} ids, {len(set(ids))} different ones"
        raise ValueError(f"{text}: each is required on its own line, once {option}")
    stated = SHA.search(text)
    is_damaged = stated[1] != lines_sha256(ids) if stated else HEAD in text
    if is_damaged or "\0" in text:
        text = f"the ids of {path} are not those its sha256 was written for: take the original"
        raise ValueError(f"{text}, or delete its comments if you changed the ids {option}")
    return ids


def subset_of_ids(dataset: Dataset[HandSample], ids: Sequence[str]) -> Dataset[HandSample]:
    """All samples of exactly these labels, in the order of `label_subset`; the dataset itself where
    all are chosen. Raises: ValueError naming ids that the set does not have."""
    indices: dict[str, list[int]] = {}
    for i in range(size_of(dataset)):
        indices.setdefault(label_id_of(dataset, i), []).append(i)
    unknown = [name for name in ids if name not in indices]
    if unknown:
        text = f"{len(unknown)} of {len(ids)} ids are not among the {len(indices)} labels of "
        raise ValueError(f"{text}{source_of(dataset)}: {unknown[:SHOWN]} (label_ids=FILE)")
    if len(ids) == len(indices):
        return dataset
    chosen = [i for name in ids for i in indices[name]]
    shares_labels = hasattr(dataset, "label_of") or isinstance(dataset, MixedHands)
    return Subset(dataset, sorted(chosen) if shares_labels else chosen)


class MixedHands(Dataset[HandSample]):
    """Several labelled sources as one, in given shares.

    An epoch has every sample of every source at least once. The source that is scarcest for its
    share sets the epoch's length; the others repeat. The sample of an index is fixed. `weights` are
    of any positive scale; None goes by size.
    """

    def __init__(
        self, sets: Mapping[str, Dataset[HandSample]], weights: Mapping[str, float] | None = None
    ) -> None:
        if not sets:
            raise ValueError("sets must hold a dataset, got none")
        sizes = {name: size_of(dataset) for name, dataset in sets.items()}
        shares = dict(sizes) if weights is None else dict(weights)
        if set(shares) != set(sets) or min(shares.values()) <= 0:
            raise ValueError(f"weights must be positive for each of {sorted(sets)}, got {shares}")
        self.sets = dict(sets)
        hands = {name: hand_sha256_of(dataset) for name, dataset in sets.items()}
        known = {sha for sha in hands.values() if sha is not None}
        if len(known) > 1:
            raise ValueError(f"sets made with different hand models cannot be mixed: {hands}")
        self.hand_sha256 = known.pop() if known else None
        epochs = max(sizes[name] / shares[name] for name in sets)
        # Rounding up keeps every sample of the longest set.
        counts = {name: max(sizes[name], round(shares[name] * epochs)) for name in sets}
        self._names, self._sizes = list(sizes), list(sizes.values())
        self._ends = np.cumsum(list(counts.values()))
        draws = ", ".join(f"{n}: {counts[n]} draws of {sizes[n]} samples" for n in sizes)
        log.info("an epoch of %d: %s", self._ends[-1], draws)

    def locate(self, index: int) -> tuple[str, int]:
        """Source and its own index of sample `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._names[number], (index - start) % self._sizes[number]

    def label_id(self, index: int) -> str:
        """Source and the source's own id of the label of sample `index`."""
        name, own = self.locate(index)
        return f"{name}:{label_id_of(self.sets[name], own)}"

    @property
    def source(self) -> str:
        """All sources, by name."""
        return "; ".join(f"{name}: {source_of(part)}" for name, part in self.sets.items())

    def fingerprint(self) -> str:
        """Digest of all sources by name."""
        return digest_of(*(f"{name} {fingerprint_of(part)}" for name, part in self.sets.items()))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> HandSample:
        name, own = self.locate(index)
        return self.sets[name][own]
