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
    """The labels of a set that a run may use.

    Attributes:
        samples: all samples of the chosen labels.
        num: labels.
        choice: how they were chosen.
    """

    samples: Dataset[HandSample]
    num: int
    choice: str

    @property
    def facts(self) -> dict[str, str]:
        """What a checkpoint remembers of the choice: the digest that labels.txt gives of its ids;
        nothing of all labels."""
        if not isinstance(self.samples, Subset):
            return {}
        return {"labels_sha256": lines_sha256(label_ids(self.samples))}

    def write(self, folder: Path) -> None:
        """Name the labels in <folder>/labels.txt where they are not all of the set; else there is
        no such file afterwards."""
        if isinstance(self.samples, Subset):
            write_ids(folder / LABELS, self.samples, self.choice)
        else:
            (folder / LABELS).unlink(missing_ok=True)


def check_choice(*, num: int | None, fraction: float | None, file: str | None) -> None:
    """Refuse what `choose_labels` refuses of any set, before there is one.

    Raises: ValueError when more than one is given, and for a share outside (0, 1]; what reading the
        file raises.
    """
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
    """A random subset of the labels, or the very ones that a file names, or all.

    Args:
        dataset: labelled samples.
        num: so many labels; None for all.
        fraction: or this share of them, at least one; None for all.
        file: or those whose ids it lists; None for all.
        seed: of random choices.
    Raises: ValueError when more than one is given, a share outside (0, 1], more labels than there
        are, or ids that are not in the set; FileNotFoundError.
    """
    check_choice(num=num, fraction=fraction, file=file)
    if file is not None:
        ids = read_ids(file)
        return ChosenLabels(subset_of_ids(dataset, ids), len(ids), f"as in {Path(file).name}")
    total = count_labels(dataset)
    if fraction is not None:
        num = share_of_labels(total, fraction)
    samples = label_subset(dataset, num, seed)
    return ChosenLabels(samples, total if num is None else num, f"seed {seed}")


def count_labels(dataset: Dataset[HandSample]) -> int:
    """Distinct labels of a set; several samples may share one (see `label_subset`)."""
    size = size_of(dataset)
    if isinstance(dataset, SharesLabels):
        return len({dataset.label_of(i) for i in range(size)})
    return size
