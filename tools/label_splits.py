"""Write the published subsets of FreiHAND's labels (no dataset is needed; the same bytes always).

python tools/label_splits.py [--out data/splits]
"""

import argparse
from pathlib import Path

import numpy as np

from handmim.data.datasets import (
    drawn_labels,
    ids_text,
    lines_sha256,
    share_of_labels,
    split_text,
)
from handmim.data.freihand import split_samples
from handmim.utils.entry import given_path, tool
from handmim.utils.files import write_atomic

# The published subsets of FreiHAND follow from its size alone: no file of it is read.
NUM_UNIQUE = 32560  # hands of the training images, each before four backgrounds
VAL_FRACTION, SPLIT_SEED = 0.02, 0  # as configs/data/freihand.yaml has them
PERCENTS, SEEDS = (1, 5, 10, 25), (0, 1, 2)
TABLE_HEAD = "| file | labels | sha256 of its ids |\n| --- | ---: | --- |\n"


def file_name(percent: int, seed: int) -> str:
    """Of a published subset of FreiHAND."""
    return f"freihand-{percent}-seed{seed}.txt"


def write_splits(folder: Path) -> list[Path]:
    """Write all published subsets of FreiHAND, and the table of them at the end of README.md.

    Raises: FileNotFoundError, or ValueError for a README.md without the table's head.
    """
    readme = folder / "README.md"
    text, head, _ = readme.read_text().partition(TABLE_HEAD)
    if not head:
        raise ValueError(f"{readme} has no table of splits, which begins with {TABLE_HEAD!r}")
    every = [str(i) for i in split_samples(NUM_UNIQUE, "train", VAL_FRACTION, SPLIT_SEED)]
    source = split_text("FreiHAND", "train", VAL_FRACTION, SPLIT_SEED)
    paths, rows = [], []
    for percent in PERCENTS:
        for seed in SEEDS:
            num = share_of_labels(len(every), percent / 100)
            ids = [every[i] for i in np.sort(drawn_labels(len(every), num, seed))]
            path = folder / file_name(percent, seed)
            write_atomic(path, ids_text(ids, source, len(every), f"seed {seed}"))
            paths.append(path)
            rows.append(f"| `{path.name}` | {len(ids)} | `{lines_sha256(ids)}` |\n")
    write_atomic(readme, text + head + "".join(rows))
    return [*paths, readme]


@tool()
def main() -> None:
    """Draw, write, print the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=given_path, default=Path("data/splits"))
    for path in write_splits(parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()
