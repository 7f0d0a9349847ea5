"""Published subsets of FreiHAND's labels, which follow from its size alone: no file of it is read.

They are what `label_subset` draws of the training part of `data=freihand`.
"""

from pathlib import Path

import numpy as np

from handmim.data.freihand import source_text, split_samples
from handmim.data.label_ids import ids_text, lines_sha256
from handmim.data.loader import drawn_labels, share_of_labels
from handmim.utils.files import write_atomic

NUM_UNIQUE = 32560  # hands of the training pictures, each before four backgrounds
VAL_FRACTION, SPLIT_SEED = 0.02, 0  # as configs/data/freihand.yaml has them
PERCENTS, SEEDS = (1, 5, 10, 25), (0, 1, 2)
TABLE_HEAD = "| file | labels | sha256 of its ids |\n| --- | ---: | --- |\n"


def file_name(percent: int, seed: int) -> str:
    """Of a published subset."""
    return f"freihand-{percent}-seed{seed}.txt"


def training_samples() -> list[str]:
    """Ids of all labels of the training part."""
    return [str(i) for i in split_samples(NUM_UNIQUE, "train", VAL_FRACTION, SPLIT_SEED)]


def subset_ids(percent: int, seed: int) -> list[str]:
    """Ids of a share of them, in rising order.

    Args:
        percent: of the labels.
        seed: of the choice.
    """
    every = training_samples()
    num = share_of_labels(len(every), percent / 100)
    return [every[i] for i in np.sort(drawn_labels(len(every), num, seed))]


def write_splits(folder: Path) -> list[Path]:
    """Write all published subsets; of README.md, the table of them is written anew.

    Args:
        folder: holds README.md, which ends with that table.
    Raises: FileNotFoundError, or ValueError for a README.md without the table's head.
    """
    readme = folder / "README.md"
    words, head, _ = readme.read_text().partition(TABLE_HEAD)
    if not head:
        raise ValueError(f"{readme} has no table of splits, which begins with {TABLE_HEAD!r}")
    paths, rows = [], []
    source = source_text("train", VAL_FRACTION, SPLIT_SEED)
    num_all = len(training_samples())
    for percent in PERCENTS:
        for seed in SEEDS:
            ids = subset_ids(percent, seed)
            path = folder / file_name(percent, seed)
            write_atomic(path, ids_text(ids, source, num_all, f"seed {seed}"))
            paths.append(path)
            rows.append(f"| `{path.name}` | {len(ids)} | `{lines_sha256(ids)}` |\n")
    write_atomic(readme, words + head + "".join(rows))
    return [*paths, readme]
