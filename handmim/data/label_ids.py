"""Subsets of labels as files that others can read and cite: one id per line below a few comments.

Ids are the dataset's own: FreiHAND's unique sample number, HO-3D's "sequence/frame". Their SHA-256
is that of the lines themselves, so `grep -v '^#' FILE | sha256sum` gives it, whatever the comments
say.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset, Subset

from handmim.types import HandSample
from handmim.utils.files import write_atomic

COMMENT = "#"
SHOWN = 5  # ids in a message
MAX_BYTES = 1 << 26  # some millions of ids
HEAD = " labels of "  # in the first comment; the second holds the sha256
SHA = re.compile(r"^# sha256 [^:\n]*: ([0-9a-f]{64})$", re.MULTILINE)


def id_of(dataset: Dataset[HandSample], index: int) -> str:
    """The dataset's own id of the label that a sample shows; its number in sets without ids."""
    own = getattr(dataset, "label_id", None) or getattr(dataset, "label_of", None)
    return str(index if own is None else own(index))


def source_of(dataset: Dataset[HandSample]) -> str:
    """What a set is and how its part was cut, in a few words; its class where it does not say."""
    return getattr(dataset, "source", type(dataset).__name__)


def label_ids(dataset: Dataset[HandSample]) -> list[str]:
    """Ids of all labels of a set, or of a subset of one, in its order."""
    if isinstance(dataset, Subset):
        return list(dict.fromkeys(id_of(dataset.dataset, i) for i in dataset.indices))
    size = len(dataset)  # type: ignore[arg-type]
    return list(dict.fromkeys(id_of(dataset, i) for i in range(size)))


def lines_sha256(ids: Sequence[str]) -> str:
    """Of the ids as lines, without comments."""
    return hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()


def ids_text(ids: Sequence[str], source: str, num_all: int, choice: str) -> str:
    """The content of such a file.

    Args:
        ids: chosen labels.
        source: the set they are of.
        num_all: labels it has.
        choice: how they were chosen: "seed 0".
    """
    head = [
        f"# {len(ids)} of {num_all} labels of {source}; {choice}",
        f"# sha256 of the lines without #: {lines_sha256(ids)}",
    ]
    return "".join(f"{line}\n" for line in (*head, *ids))


def write_ids(path: Path, subset: Subset[HandSample], choice: str) -> None:
    """Write the ids of a subset's labels, whole or not at all.

    Args:
        path: of the file.
        subset: of a labelled set.
        choice: as in `ids_text`.
    """
    num_all = len(label_ids(subset.dataset))
    write_atomic(path, ids_text(label_ids(subset), source_of(subset.dataset), num_all, choice))


def read_ids(path: str | Path) -> list[str]:
    """Ids of a file, in its order.

    Raises: FileNotFoundError; ValueError for a file without ids, with an id twice, or with other
        ids than its own sha256 says.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file of label ids at {path} (label_ids=FILE)")
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f"{path} has {size} bytes, at most {MAX_BYTES} of label ids are read (label_ids=FILE)"
        )
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text of label ids: {error} (label_ids=FILE)") from error
    lines = [line.strip() for line in text.splitlines()]
    ids = [line for line in lines if line and not line.startswith(COMMENT)]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(
            f"{path} has {len(ids)} ids, {len(set(ids))} different ones: wanted is one or more, "
            "each on its own line, once (label_ids=FILE)"
        )
    said = SHA.search(text)
    is_damaged = "\0" in text or (HEAD in text and said is None)
    if is_damaged or (said and said[1] != lines_sha256(ids)):
        raise ValueError(
            f"the ids of {path} are not those its sha256 was written for: take the original, or "
            "delete its comments if they were changed on purpose (label_ids=FILE)"
        )
    return ids


def subset_of_ids(dataset: Dataset[HandSample], ids: Sequence[str]) -> Dataset[HandSample]:
    """All samples of exactly these labels, in the order in which `label_subset` has them.

    Args:
        dataset: labelled samples.
        ids: of its labels.
    Returns: the dataset itself where all its labels are meant.
    Raises: ValueError naming ids that the set does not have.
    """
    size = len(dataset)  # type: ignore[arg-type]
    places: dict[str, list[int]] = {}
    for i in range(size):
        places.setdefault(id_of(dataset, i), []).append(i)
    unknown = [name for name in ids if name not in places]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(ids)} ids are not among the {len(places)} labels of "
            f"{source_of(dataset)}: {unknown[:SHOWN]} (label_ids=FILE)"
        )
    if len(ids) == len(places):
        return dataset
    chosen = [i for name in ids for i in places[name]]
    shares = getattr(dataset, "label_of", None) is not None
    return Subset(dataset, sorted(chosen) if shares else chosen)
