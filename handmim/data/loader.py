"""Samples to batches. Nothing is augmented here: that happens batch by batch, later."""

import logging
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Subset

from handmim.data.samples import mirror_sample
from handmim.engine.watchdog import beat
from handmim.engine.workers import Loaded, Loading, attempt
from handmim.geometry.camera import ndc_from_px
from handmim.hand.skeleton import CONVENTION_NAMES
from handmim.types import CropBatch, CropSample, HandBatch, HandSample
from handmim.utils.files import UnreadableSample
from handmim.utils.findings import shown

log = logging.getLogger(__name__)


def _stacked(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    sides = {picture.shape for picture in pictures}
    if len(sides) != 1:
        raise ValueError(
            f"crops of one batch must share one size, got {sorted(sides)} (data.image_px)"
        )
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # channels last in memory


def group_number(group: str) -> int:
    """A group's name as a number that fits int64 and is the same in every process and run."""
    return int.from_bytes(
        blake2b(group.encode(errors="surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def collate_crops(samples: Sequence[CropSample | HandSample]) -> CropBatch:
    """Images only: labels, where a dataset has them, are dropped. Hands that are known to be left
    are mirrored, as everywhere.

    Partners are kept where every sample has one. Samples without a group are groups of their own,
    so that copies of one sample, as a batch larger than the set has them, are no negatives of each
    other.
    """
    crops = [s if isinstance(s, CropSample) else _right_crop(s) for s in samples]
    partners = [s.partner for s in crops if s.partner is not None]
    names = [f"alone {s.sample_id}" if s.group is None else f"group {s.group}" for s in crops]
    return CropBatch(
        image=_stacked([s.image for s in crops]),
        partner=_stacked(partners) if len(partners) == len(crops) else None,
        group=torch.tensor([group_number(name) for name in names]),
    )


def _right_crop(sample: HandSample) -> CropSample:
    image = sample.image if sample.is_right else sample.image[:, ::-1]
    return CropSample(np.ascontiguousarray(image), sample.sample_id)


def collate_hands(samples: Sequence[HandSample]) -> HandBatch:
    """Pictures and labels of the stored crops as right hands, 2D joints in ndc.

    Raises: ValueError for samples without labels.
    """
    if not all(isinstance(s, HandSample) for s in samples):
        raise ValueError(
            "labels are wanted but the data gives unlabelled crops: data.partners=false, "
            "data.grouped=false (they are for pretraining)"
        )
    right = [s if s.is_right else mirror_sample(s) for s in samples]

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(getattr(s, name)) for s in right]))

    image = _stacked([s.image for s in right])
    return HandBatch(
        image=image,
        was_left=torch.tensor([not s.is_right for s in samples]),
        joint_convention=torch.tensor(
            [CONVENTION_NAMES.index(s.joint_convention) for s in samples]
        ),
        K_crop_px=stack("K_crop_px"),
        has_K=stack("has_K"),
        kp2d_crop_ndc=ndc_from_px(stack("kp2d_crop_px"), image.shape[-1]),
        kp2d_valid=stack("kp2d_valid"),
        kp2d_conf=stack("kp2d_conf"),
        joints_cam_m=stack("joints_cam_m"),
        joints_valid=stack("joints_valid"),
        verts_cam_m=stack("verts_cam_m"),
        has_verts=stack("has_verts"),
        rotmats=stack("rotmats"),
        betas=stack("betas"),
        has_mano=stack("has_mano"),
    )


def drawn_labels(total: int, num: int, seed: int) -> NDArray[np.int64]:
    """Places of `num` of `total` labels in the order of the draw; fewer are the first of more."""
    return np.random.default_rng([seed, total]).permutation(total)[:num]


def share_of_labels(total: int, fraction: float) -> int:
    """How many labels a share is: one at least.

    Raises: ValueError for a share outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction must be in (0, 1], got {fraction} (label_fraction)")
    return max(1, round(fraction * total))


def label_subset(dataset: Dataset[HandSample], num: int | None, seed: int) -> Dataset[HandSample]:
    """The samples of `num` random labels, which depend on (labels of the dataset, seed) only.

    A dataset in which several samples share a label (four backgrounds of one hand, repeated draws
    of a mix) says so by `label_of(index)`; all samples of a chosen label are kept. Subsets of one
    seed are nested: the first 50 of 100 are the 50.

    Args:
        dataset: labelled samples.
        num: labels; None keeps all.
        seed: of the choice.
    Raises: ValueError when there are not that many.
    """
    if num is None:
        return dataset
    size = len(dataset)  # type: ignore[arg-type]
    label_of = getattr(dataset, "label_of", None)
    labels = list(range(size)) if label_of is None else [label_of(i) for i in range(size)]
    distinct = list(dict.fromkeys(labels))
    total = len(distinct)
    if num == total:
        return dataset
    if not 0 < num < total:
        raise ValueError(f"num_labels must be in 1..{total}, got {num} (num_labels)")
    order = drawn_labels(total, num, seed)
    if label_of is None:
        return Subset(dataset, order.tolist())
    chosen = {distinct[i] for i in order}
    return Subset(dataset, [i for i, label in enumerate(labels) if label in chosen])


class Sparing(Subset[HandSample]):
    """All samples of a training set, of which `batches` leaves out so many that cannot be read.

    Args:
        dataset: labelled samples.
        most: unreadable samples that may be left out.
    """

    def __init__(self, dataset: Dataset[HandSample], most: int) -> None:
        super().__init__(dataset, range(len(dataset)))  # type: ignore[arg-type]
        self.most, self.missed = most, dict[str, str]()


class _Collated(Dataset[Loaded]):
    """Batches of the readable samples by position, None without any, and names of the others."""

    def __init__(self, dataset: Dataset[HandSample]) -> None:
        self.dataset = dataset

    def __getitem__(self, places: list[int]) -> Loaded:
        return attempt(lambda: self._make(places))

    def _make(self, places: list[int]) -> Loaded:
        samples, missed = [], []
        for place in places:
            try:
                samples.append(self.dataset[place])
            except UnreadableSample as error:
                missed.append((error.path, error.reason))
        return Loaded(collate_hands(samples) if samples else None, missed)


def batches(
    dataset: Dataset[HandSample], batch_size: int, num_workers: int = 0
) -> Iterator[HandBatch]:
    """All samples in order, the last batch may be short; for evaluation and probing.

    Args:
        dataset: labelled samples.
        batch_size: samples at a time.
        num_workers: processes that load; 0 loads in this one.
    Raises: ValueError, after a look at all samples, naming those that cannot be read; up to
        `most` of a `Sparing` set are left out and named in the log.
    """
    size, missed = len(dataset), dict[str, str]()  # type: ignore[arg-type]
    most = dataset.most if isinstance(dataset, Sparing) else 0
    order = BatchSampler(range(size), batch_size, drop_last=False)
    generator = torch.Generator()  # else it would draw from the global one
    with Loading(_Collated(dataset), order, num_workers, generator=generator) as loading:
        for number in range(len(order)):
            beat("samples to evaluate, from number", number * batch_size)
            loaded = next(loading)
            batch = loaded.unwrapped()
            missed |= dict(loaded.replaced)
            if batch is not None and len(missed) <= most:
                yield batch
        beat("what is made of the samples")
    text = f"{len(missed)} of {size} labelled images cannot be read: "
    text += shown([f"{name} ({reason})" for name, reason in missed.items()])
    if len(missed) > most or len(missed) == size:
        share = f", more than the {most} that training may leave out" * isinstance(dataset, Sparing)
        raise ValueError(
            f"{text}{share}; copy them again, or take them out of the annotations "
            "(tools/doctor.py full=true lists them"
            + (", trainer.max_unreadable)" if share else "; data or probe: annotations)")
        )
    if isinstance(dataset, Sparing) and missed.keys() - dataset.missed.keys():
        dataset.missed |= missed
        what = "left out here, and replaced by others in training"
        log.warning("%s; they are %s (trainer.max_unreadable)", text, what)
