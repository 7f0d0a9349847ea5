"""Several labelled sources as one, in given shares."""

import logging
from collections.abc import Hashable, Mapping

import numpy as np
from torch.utils.data import Dataset

from handmim.data.fingerprint import digest_of, fingerprint_of
from handmim.data.label_ids import id_of, source_of
from handmim.types import HandSample

log = logging.getLogger(__name__)


class MixedHands(Dataset[HandSample]):
    """One epoch shows every sample of every source at least once, and sources in their shares.

    The source that is scarcest for its share sets the epoch's length; the others repeat. Which
    sample index i stands for is fixed, so shuffling, resuming and subsets work as for one dataset.

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
            raise ValueError("nothing to mix (data.train.sets)")
        sizes = {name: len(dataset) for name, dataset in sets.items()}  # type: ignore[arg-type]
        shares = dict(sizes) if weights is None else dict(weights)
        if set(shares) != set(sets) or min(shares.values()) <= 0:
            raise ValueError(
                f"weights must be positive for each of {sorted(sets)}, got {shares} (data.weights)"
            )
        self.sets = dict(sets)
        hands = {n: getattr(d, "hand_sha256", None) for n, d in sets.items()}
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
        told = ", ".join(f"{n}: {counts[n]} draws of {sizes[n]} samples" for n in self._names)
        log.info("an epoch of %d: %s", self._ends[-1], told)

    def locate(self, index: int) -> tuple[str, int]:
        """Source and its own index of sample `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        place = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[place - 1]) if place else 0
        return self._names[place], (index - start) % self._sizes[place]

    def label_of(self, index: int) -> tuple[str, Hashable]:
        """Source and label that sample `index` draws."""
        name, own = self.locate(index)
        of_own = getattr(self.sets[name], "label_of", None)
        return name, own if of_own is None else of_own(own)

    def label_id(self, index: int) -> str:
        """Source and the source's own id of the label that sample `index` draws."""
        name, own = self.locate(index)
        return f"{name}:{id_of(self.sets[name], own)}"

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
