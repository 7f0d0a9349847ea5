"""Unlabeled crops beside labelled ones: pairs of samples, and batches with views of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from handmim.data.augment import HandAugment
from handmim.data.datasets import size_of
from handmim.data.loader import collate_crops, collate_hands
from handmim.data.pixels import mix_amplitudes
from handmim.data.views import ViewMaker
from handmim.types import CropBatch, CropSample, HandBatch, HandSample, PretrainBatch, StepInfo
from handmim.utils.arguments import shares


class JointBatch(NamedTuple):
    """Labelled hands, and unlabeled crops: as the loader collates them, later their views, made
    once for each term that reads some."""

    hands: HandBatch
    crops: CropBatch
    views: dict[str, PretrainBatch]

    def part(self, start: int, stop: int) -> "JointBatch":
        """Samples from start to stop of the hands, and the same share of the crops."""
        share = len(self.crops.image) / len(self.hands.image)
        first, last = round(start * share), round(stop * share)
        if first == last:
            num = f"a part of {stop - start} labelled images has no unlabeled crop"
            raise ValueError(f"{num}: raise unlabeled.share, or lower trainer.accumulate")
        fields: Any = (None if x is None else x[first:last] for x in self.crops)
        crops = CropBatch(*fields)
        views = {name: batch.part(first, last) for name, batch in self.views.items()}
        return JointBatch(self.hands.part(start, stop), crops, views)


class Pairs(Dataset[tuple[HandSample, CropSample | HandSample]]):
    """A labelled sample with an unlabeled one; an epoch has every sample of the larger set once,
    and those of the other repeat. The pair of an index is fixed."""

    def __init__(self, hands: Dataset[HandSample], crops: Dataset[Any]) -> None:
        self.hands, self.crops = hands, crops
        self._sizes = size_of(hands), size_of(crops)

    def __len__(self) -> int:
        return max(self._sizes)

    def __getitem__(self, index: int) -> tuple[HandSample, CropSample | HandSample]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pairs")
        return self.hands[index % self._sizes[0]], self.crops[index % self._sizes[1]]


@dataclass(frozen=True)
class CollatePairs:
    """Pairs to a `JointBatch` with a share of the unlabeled samples, one at least."""

    share: float

    def __post_init__(self) -> None:
        shares(share=self.share)

    def __call__(self, samples: Sequence[tuple[HandSample, Any]]) -> JointBatch:
        """A batch without views yet."""
        hands, crops = zip(*samples, strict=True)
        some = crops[: self.num_of(len(crops))]
        return JointBatch(collate_hands(hands), collate_crops(some), {})

    def num_of(self, num_hands: int) -> int:
        """Unlabeled crops beside so many hands."""
        return max(1, round(self.share * num_hands))


@dataclass(kw_only=True)
class PreparePairs:
    """Augment the hands of a `JointBatch` as without unlabeled crops, then make views of these.

    With `spectrum_prob`, so many hands take a random share of the amplitude spectrum of a crop of
    the batch, which keeps their phases, so that labels hold (as FDA, Yang and Soatto 2020, arXiv
    2004.05498, over all frequencies)."""

    augment: HandAugment
    views: Mapping[str, ViewMaker] = field(default_factory=dict)
    spectrum_prob: float = 0.0

    def __post_init__(self) -> None:
        shares(spectrum_prob=self.spectrum_prob)

    def __call__(self, batch: JointBatch, generator: torch.Generator, info: StepInfo) -> JointBatch:
        """Model input and views, which depend on nothing but the CPU generator and the step."""
        hands = self.augment(batch.hands, generator, info)
        views = {name: make(batch.crops, generator, info) for name, make in self.views.items()}
        if self.spectrum_prob > 0:
            hands = hands._replace(image=self._mixed(hands.image, batch.crops.image, generator))
        return JointBatch(hands, batch.crops, views)

    def _mixed(self, image: Tensor, crops: Tensor, generator: torch.Generator) -> Tensor:
        b = len(image)
        u = torch.rand(b, 2, generator=generator)
        share = u[:, 0] * (u[:, 1] < self.spectrum_prob)
        other = torch.randint(len(crops), (b,), generator=generator).to(crops.device)
        plain = self.augment.evaluate_images(crops[other])
        return mix_amplitudes(image, plain, share.to(image.device))
