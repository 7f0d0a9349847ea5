"""Samples to batches. Nothing is augmented here: that happens batch by batch on the device."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from handmim.contracts import CropBatch, CropSample, HandBatch, HandSample
from handmim.data.samples import mirror_sample
from handmim.geometry.camera import ndc_from_px
from handmim.hand.skeleton import RULE_NAMES


def _images(samples: Sequence[CropSample | HandSample]) -> Tensor:
    sides = {s.image.shape for s in samples}
    if len(sides) != 1:
        raise ValueError(
            f"crops of one batch must share one size, got {sorted(sides)} (data.image_px)"
        )
    return torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).contiguous()


def collate_crops(samples: Sequence[CropSample | HandSample]) -> CropBatch:
    """Pictures only: labels, where a dataset has them, are dropped."""
    return CropBatch(image=_images(samples))


def collate_hands(samples: Sequence[HandSample]) -> HandBatch:
    """Pictures and labels of the stored crops as right hands, 2D joints in ndc."""
    right = [s if s.is_right else mirror_sample(s) for s in samples]

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(getattr(s, name)) for s in right]))

    image = _images(right)
    return HandBatch(
        image=image,
        was_left=torch.tensor([not s.is_right for s in samples]),
        joint_rule=torch.tensor([RULE_NAMES.index(s.joint_rule) for s in samples]),
        K_crop_px=stack("K_crop_px"),
        has_K=stack("has_K"),
        kp2d_crop_ndc=ndc_from_px(stack("kp2d_crop_px"), image.shape[-1]),
        kp2d_valid=stack("kp2d_valid"),
        joints_cam_m=stack("joints_cam_m"),
        joints_valid=stack("joints_valid"),
        verts_cam_m=stack("verts_cam_m"),
        has_verts=stack("has_verts"),
        rotmats=stack("rotmats"),
        betas=stack("betas"),
        has_mano=stack("has_mano"),
    )


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
    order = np.random.default_rng([seed, total]).permutation(total)[:num]
    if label_of is None:
        return Subset(dataset, order.tolist())
    chosen = {distinct[i] for i in order}
    return Subset(dataset, [i for i, label in enumerate(labels) if label in chosen])


def batches(
    dataset: Dataset[HandSample], batch_size: int, num_workers: int = 0
) -> Iterator[HandBatch]:
    """All samples in order, the last batch may be short; for evaluation and probing.

    Args:
        dataset: labelled samples.
        batch_size: samples at a time.
        num_workers: processes that load; 0 loads in this one.
    """
    yield from DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate_hands,
        num_workers=num_workers,
        generator=torch.Generator(),  # else it would draw from the global one
    )
