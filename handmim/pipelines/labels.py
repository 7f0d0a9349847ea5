"""Which labels a fine-tuning run may use."""

from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset, Subset

from handmim.data.datasets import SharesLabels, size_of
from handmim.data.label_subsets import (
    label_ids,
    label_subset,
    lines_sha256,
    read_ids,
    share_of_labels,
    subset_of_ids,
    write_ids,
)
from handmim.types import HandSample

LABELS = "labels.txt"


class ChosenLabels(NamedTuple):
    """The labels of a set that a run may use."""

    samples: Dataset[HandSample]  # all of these labels
    num: int
    choice: str  # how they were chosen

    @property
    def facts(self) -> dict[str, str]:
        """For a checkpoint: the digest that labels.txt gives of its ids; nothing of all labels."""
        if not isinstance(self.samples, Subset):
            return {}
        return {"labels_sha256": lines_sha256(label_ids(self.samples))}

    def write(self, folder: Path) -> None:
        """Name the labels in <folder>/labels.txt; all of a set leave no such file."""
        if isinstance(self.samples, Subset):
            write_ids(folder / LABELS, self.samples, self.choice)
        else:
            (folder / LABELS).unlink(missing_ok=True)


def check_choice(*, num: int | None, fraction: float | None, file: str | None) -> None:
    """Refuse what `choose_labels` refuses of any set, before there is one."""
    options = {"num_labels": num, "label_fraction": fraction, "label_ids": file}
    given = {key: value for key, value in options.items() if value is not None}
    if len(given) > 1:
        listed = ", ".join(f"{key}={value}" for key, value in given.items())
        raise ValueError(
            f"give one of {', '.join(options)}, not both: got {listed} (KEY=null takes one back)"
        )
    if fraction is not None:
        share_of_labels(1, fraction)
    if file is not None:
        read_ids(file)


def choose_labels(
    dataset: Dataset[HandSample],
    *,
    num: int | None = None,
    fraction: float | None = None,
    file: str | None = None,
    seed: int = 0,
) -> ChosenLabels:
    """So many random labels of a set, or this share of them, or those whose ids a file lists; all
    where every one is None.

    Raises: ValueError when more than one is given, a share outside (0, 1], more labels than there
        are, or ids that are not in the set; FileNotFoundError.
    """
    check_choice(num=num, fraction=fraction, file=file)
    if file is not None:
        ids = read_ids(file)
        return ChosenLabels(subset_of_ids(dataset, ids), len(ids), f"as in {Path(file).name}")
    total = size_of(dataset)
    if isinstance(dataset, SharesLabels):  # several samples have one
        total = len({dataset.label_of(i) for i in range(total)})
    if fraction is not None:
        num = share_of_labels(total, fraction)
    samples = label_subset(dataset, num, seed)
    return ChosenLabels(samples, total if num is None else num, f"seed {seed}")
