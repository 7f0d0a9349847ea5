"""Subsets of labels: drawn by a seed, or listed in a file that others can read and cite.

A file has one id per line below a few comments. Ids are the dataset's own: FreiHAND's unique sample
number, HO-3D's "sequence/frame". Their SHA-256 is that of the lines themselves, so
`grep -v '^#' FILE | sha256sum` gives it, whatever the comments hold.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from handmim.data.datasets import SharesLabels, label_id_of, size_of, source_of
from handmim.types import HandSample
from handmim.utils.files import write_atomic

SHOWN = 5  # ids in a message
MAX_BYTES = 1 << 26  # some millions of ids
HEAD = " labels of "  # in the first comment; the second holds the sha256
SHA = re.compile(r"^# sha256 [^:\n]*: ([0-9a-f]{64})$", re.MULTILINE)


def drawn_labels(total: int, num: int, seed: int) -> NDArray[np.int64]:
    """Indices of `num` of `total` labels in the order of the draw; fewer are the first of more."""
    return np.random.default_rng([seed, total]).permutation(total)[:num]


def share_of_labels(total: int, fraction: float) -> int:
    """Number of labels of a share: one at least.

    Raises: ValueError for a share outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction must be in (0, 1], got {fraction}")
    return max(1, round(fraction * total))


def label_subset(dataset: Dataset[HandSample], num: int | None, seed: int) -> Dataset[HandSample]:
    """The samples of `num` random labels, which depend on (labels of the dataset, seed) only.

    All samples of a chosen label are kept. Subsets of one seed are nested: the first 50 of 100 are
    the 50.

    Args:
        dataset: labelled samples.
        num: labels; None keeps all.
        seed: of the choice.
    Raises: ValueError when there are not that many.
    """
    if num is None:
        return dataset
    size = size_of(dataset)
    shared = dataset if isinstance(dataset, SharesLabels) else None
    labels = [shared.label_of(i) for i in range(size)] if shared else list(range(size))
    distinct = list(dict.fromkeys(labels))
    total = len(distinct)
    if num == total:
        return dataset
    if not 0 < num < total:
        raise ValueError(f"num_labels must be in 1..{total}, got {num}")
    order = drawn_labels(total, num, seed)
    if shared is None:
        return Subset(dataset, order.tolist())
    chosen = {distinct[i] for i in order}
    return Subset(dataset, [i for i, label in enumerate(labels) if label in chosen])


def label_ids(dataset: Dataset[HandSample]) -> list[str]:
    """Ids of all labels of a set, or of a subset of one, in its order."""
    if isinstance(dataset, Subset):
        return list(dict.fromkeys(label_id_of(dataset.dataset, i) for i in dataset.indices))
    return list(dict.fromkeys(label_id_of(dataset, i) for i in range(size_of(dataset))))


def lines_sha256(ids: Sequence[str]) -> str:
    """SHA-256 of the ids as lines, without comments."""
    return hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()


def ids_text(ids: Sequence[str], source: str, num_all: int, choice: str) -> str:
    """Content of a file of ids out of the `num_all` of a source, chosen by "seed 0"."""
    head = [
        f"# {len(ids)} of {num_all} labels of {source}; {choice}",
        f"# sha256 of the lines without #: {lines_sha256(ids)}",
    ]
    return "".join(f"{line}\n" for line in (*head, *ids))


def write_ids(path: Path, subset: Subset[HandSample], choice: str) -> None:
    """Write the ids of a subset's labels; the file is complete or absent."""
    num_all = len(label_ids(subset.dataset))
    write_atomic(path, ids_text(label_ids(subset), source_of(subset.dataset), num_all, choice))


def read_ids(path: str | Path) -> list[str]:
    """Ids of a file, in its order.

    Raises: FileNotFoundError; ValueError for a file without ids, with an id twice, or with other
        ids than its sha256 states.
    """
    option = "(label_ids=FILE)"
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file of label ids at {path} {option}")
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, at most {MAX_BYTES} are read {option}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text of label ids: {error} {option}") from error
    lines = [line.strip() for line in text.splitlines()]
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(
            f"{path} has {len(ids)} ids, {len(set(ids))} different ones: one or more are required, "
            f"each on its own line, once {option}"
        )
    stated = SHA.search(text)
    is_damaged = "\0" in text or (HEAD in text and stated is None)
    if is_damaged or (stated and stated[1] != lines_sha256(ids)):
        raise ValueError(
            f"the ids of {path} are not those its sha256 was written for: take the original, or "
            f"delete its comments if they were changed on purpose {option}"
        )
    return ids


def subset_of_ids(dataset: Dataset[HandSample], ids: Sequence[str]) -> Dataset[HandSample]:
    """All samples of exactly these labels, in the order of `label_subset`.

    Returns: the dataset itself where all its labels are chosen.
    Raises: ValueError naming ids that the set does not have.
    """
    indices: dict[str, list[int]] = {}
    for i in range(size_of(dataset)):
        indices.setdefault(label_id_of(dataset, i), []).append(i)
    unknown = [name for name in ids if name not in indices]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(ids)} ids are not among the {len(indices)} labels of "
            f"{source_of(dataset)}: {unknown[:SHOWN]} (label_ids=FILE)"
        )
    if len(ids) == len(indices):
        return dataset
    chosen = [i for name in ids for i in indices[name]]
    return Subset(dataset, sorted(chosen) if isinstance(dataset, SharesLabels) else chosen)
