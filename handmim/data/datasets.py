"""What datasets may offer beside samples (ids, labels, fingerprints), and mixtures of them.

A fingerprint is a digest of a dataset's content: it stays when files move and differs for other
files. Names and sizes count for every file, content for some at even distances, so that a large set
costs a fraction of a second.
"""

import hashlib
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from torch.utils.data import Dataset, Subset

from handmim.types import HandSample

log = logging.getLogger(__name__)

READ = 64  # files, or rows of an array, whose content counts
READ_BYTES = 1 << 16  # of each file


@runtime_checkable
class HasFingerprint(Protocol):
    """A dataset with a digest of its content."""

    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal."""
        ...


@runtime_checkable
class HasLabelIds(Protocol):
    """A dataset whose labels have names of their own."""

    def label_id(self, index: int) -> str:
        """Name of the label of a sample."""
        ...


@runtime_checkable
class SharesLabels(Protocol):
    """A dataset in which several samples share a label (four backgrounds of one hand)."""

    def label_of(self, index: int) -> Hashable:
        """The label of a sample."""
        ...


@runtime_checkable
class HasSource(Protocol):
    """A dataset that describes itself and the cut of its part in a few words."""

    source: str


@runtime_checkable
class HasHand(Protocol):
    """A dataset whose labels were made with one hand model."""

    hand_sha256: str | None


def size_of(dataset: Dataset[Any]) -> int:
    """Number of samples."""
    return len(cast(Sized, dataset))


def label_id_of(dataset: Dataset[Any], index: int) -> str:
    """The dataset's own id of the label of a sample; its number in sets without ids."""
    if isinstance(dataset, HasLabelIds):
        return dataset.label_id(index)
    return str(dataset.label_of(index) if isinstance(dataset, SharesLabels) else index)


def source_of(dataset: Dataset[Any]) -> str:
    """Description of a set; its class where it has none."""
    return dataset.source if isinstance(dataset, HasSource) else type(dataset).__name__


def hand_sha256_of(dataset: Dataset[Any]) -> str | None:
    """Digest of the hand model of the labels; None where labels come from no model."""
    return dataset.hand_sha256 if isinstance(dataset, HasHand) else None


def fingerprint_of(dataset: Dataset[Any]) -> str | None:
    """Fingerprint of a dataset, of the whole one for a subset; None where it has none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset.fingerprint() if isinstance(dataset, HasFingerprint) else None


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 of texts and bytes, each separated from the next, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def some(num: int) -> list[int]:
    """Indices at even distances of a sequence of `num`."""
    return sorted({round(i) for i in np.linspace(0, num - 1, min(num, READ))})


def files_digest(root: Path, names: Sequence[str]) -> str:
    """Digest of files by their paths relative to a folder; a missing file counts as such."""
    parts: list[str | bytes] = []
    for name in names:
        parts += [name, str(_size(root / name))]
    return digest_of(*parts, *(_head(root / names[i]) for i in some(len(names))))


def arrays_digest(arrays: Iterable[Any]) -> str:
    """Digest of arrays [n, ...] by their shapes and some rows."""
    parts: list[str | bytes] = []
    for array in arrays:
        rows = np.stack([np.asarray(array[i]) for i in some(len(array))])
        parts += [f"{len(array)} {rows.dtype} {rows.shape}", rows.tobytes()]
    return digest_of(*parts)


def copies(root: Path, names: Sequence[str]) -> tuple[int, int]:
    """Number of copies among some of the files, and number of compared files."""
    contents = [(_size(root / names[i]), _head(root / names[i])) for i in some(len(names))]
    return len(contents) - len(set(contents)), len(contents)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():  # opening a pipe would wait forever
            return b""
        with path.open("rb") as file:
            return file.read(READ_BYTES)
    except OSError:
        return b""


class MixedHands(Dataset[HandSample]):
    """Several labelled sources as one, in given shares.

    An epoch has every sample of every source at least once. The source that is scarcest for its
    share sets the epoch's length; the others repeat. The sample of an index is fixed, so shuffling,
    resuming and subsets work as for one dataset.

    Args:
        sets: datasets by name.
        weights: share of each, any positive scale; None goes by size (a plain concatenation).
    Raises: ValueError for other names than those of the sets, a weight that is not positive, or
        sets made with different hand models.
    """

    def __init__(
        self,
        sets: Mapping[str, Dataset[HandSample]],
        weights: Mapping[str, float] | None = None,
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
        self._names = list(self.sets)
        self._ends = np.cumsum([counts[name] for name in self._names])
        self._sizes = [sizes[name] for name in self._names]
        draws = ", ".join(f"{n}: {counts[n]} draws of {sizes[n]} samples" for n in self._names)
        log.info("an epoch of %d: %s", self._ends[-1], draws)

    def locate(self, index: int) -> tuple[str, int]:
        """Source and its own index of sample `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._names[number], (index - start) % self._sizes[number]

    def label_of(self, index: int) -> tuple[str, Hashable]:
        """Source and label of sample `index`."""
        name, own = self.locate(index)
        part = self.sets[name]
        return name, part.label_of(own) if isinstance(part, SharesLabels) else own

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
