"""Samples to batches. Nothing is augmented here: that happens batch by batch, later."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Subset

from handmim.data.datasets import size_of
from handmim.data.samples import mirror_sample
from handmim.engine.workers import Loaded, Loading, beat
from handmim.geometry.camera import ndc_from_px
from handmim.hand.skeleton import CONVENTION_NAMES
from handmim.types import CropBatch, CropSample, HandBatch, HandSample
from handmim.utils.files import UnreadableSample
from handmim.utils.findings import shown

log = logging.getLogger(__name__)

STACKED = (  # fields of samples that batches have as they are
    "K_crop_px", "has_K", "kp2d_valid", "kp2d_conf", "joints_cam_m", "joints_valid",
    "verts_cam_m", "has_verts", "rotmats", "betas", "has_mano",
)  # fmt: skip


def _stack_images(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    sides = {image.shape for image in images}
    if len(sides) != 1:
        raise ValueError(f"crops of one batch must share one size, got {sorted(sides)} (image_px)")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # channels last in memory


def group_number(group: str) -> int:
    """A group's name as an int64 that is the same in every process and run."""
    digest = blake2b(group.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def collate_crops(samples: Sequence[CropSample | HandSample]) -> CropBatch:
    """Batch of images without labels; hands labelled as left are mirrored, partners kept where
    every sample has one. A sample without a group is a group of its own, and copies of it share
    that."""
    crops = [s if isinstance(s, CropSample) else _right_crop(s) for s in samples]
    partners = [s.partner for s in crops if s.partner is not None]
    names = [f"alone {s.sample_id}" if s.group is None else f"group {s.group}" for s in crops]
    return CropBatch(
        image=_stack_images([s.image for s in crops]),
        partner=_stack_images(partners) if len(partners) == len(crops) else None,
        group=torch.tensor([group_number(name) for name in names]),
    )


def _right_crop(sample: HandSample) -> CropSample:
    image = sample.image if sample.is_right else sample.image[:, ::-1]
    return CropSample(np.ascontiguousarray(image), sample.sample_id)


def collate_hands(samples: Sequence[HandSample]) -> HandBatch:
    """Images and labels of the stored crops as right hands, 2D joints in ndc. Raises: ValueError
    for samples without labels."""
    if not all(isinstance(s, HandSample) for s in samples):
        raise ValueError(
            "labels are required but the data gives unlabelled crops: data.partners=false, "
            "data.grouped=false (they are for pretraining)"
        )
    right = [s if s.is_right else mirror_sample(s) for s in samples]

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(getattr(s, name)) for s in right]))

    image = _stack_images([s.image for s in right])
    return HandBatch(
        image=image,
        was_left=torch.tensor([not s.is_right for s in samples]),
        joint_convention=torch.tensor(
            [CONVENTION_NAMES.index(s.joint_convention) for s in samples]
        ),
        kp2d_crop_ndc=ndc_from_px(stack("kp2d_crop_px"), image.shape[-1]),
        **{name: stack(name) for name in STACKED},
    )


class SkipUnreadable(Subset[HandSample]):
    """All samples of a training set; `batches` leaves out up to `max_skipped` unreadable ones."""

    def __init__(self, dataset: Dataset[HandSample], max_skipped: int) -> None:
        super().__init__(dataset, range(size_of(dataset)))
        self.max_skipped, self.skipped = max_skipped, dict[str, str]()


def _collated(dataset: Dataset[HandSample], indices: list[int]) -> Loaded:
    """A batch of the readable samples, None without any, and names of the others."""
    samples, unreadable = [], []
    for index in indices:
        try:
            samples.append(dataset[index])
        except UnreadableSample as error:
            unreadable.append((error.path, error.reason))
    return Loaded(collate_hands(samples) if samples else None, unreadable)


def batches(
    dataset: Dataset[HandSample], batch_size: int, num_workers: int = 0
) -> Iterator[HandBatch]:
    """All samples in order, the last batch may be short; for evaluation and probing.

    Raises: ValueError, after all samples were read, naming those that cannot be read; up to
        `max_skipped` of a `SkipUnreadable` set are left out and named in the log.
    """
    size, skipped = size_of(dataset), dict[str, str]()
    tolerant = dataset if isinstance(dataset, SkipUnreadable) else None
    most = tolerant.max_skipped if tolerant else 0
    order = BatchSampler(range(size), batch_size, drop_last=False)
    generator = torch.Generator()  # else it would draw from the global one
    with Loading(partial(_collated, dataset), order, num_workers, generator=generator) as loading:
        for number in range(len(order)):
            beat(f"samples to evaluate, from number {number * batch_size}")
            loaded = next(loading)
            skipped |= dict(loaded.replaced)
            if loaded.batch is not None and len(skipped) <= most:
                yield loaded.batch
        beat("what is made of the samples")
    text = f"{len(skipped)} of {size} labelled images cannot be read: "
    text += shown([f"{name} ({reason})" for name, reason in skipped.items()])
    if len(skipped) > most or len(skipped) == size:
        share = f", more than the {most} that training may leave out" if tolerant else ""
        option = ", trainer.max_unreadable)" if tolerant else "; data or probe: annotations)"
        raise ValueError(
            f"{text}{share}; copy them again, or take them out of the annotations "
            f"(tools/doctor.py full=true lists them{option}"
        )
    if tolerant and skipped.keys() - tolerant.skipped.keys():
        tolerant.skipped |= skipped
        action = "left out here, and replaced by others in training"
        log.warning("%s; they are %s (trainer.max_unreadable)", text, action)
