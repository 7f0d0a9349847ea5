"""Shared parts of all supervised regressions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from handmim.data.augment import HandAugment
from handmim.data.datasets import size_of
from handmim.data.loader import SkipUnreadable, batches
from handmim.diagnostics.images import draw_predictions
from handmim.hand.model import HandLayer
from handmim.losses.composite import CompositeLoss, LossTerm, StepWeights
from handmim.losses.hand import JointEstimate, JointOutputs
from handmim.models.teacher import EmaTeacher, averaging_of
from handmim.models.vit import ViT
from handmim.types import HandBatch, HandSample, Intrinsics, StepInfo, StepResult

NUM_IMAGES = 8
MAX_IMAGES = 2048  # that the start is measured on


def evaluation_crops(
    dataset: Dataset[HandSample], augment: HandAugment, num_workers: int = 0, batch_size: int = 256
) -> Iterator[HandBatch]:
    """Labelled samples in the crops that evaluation uses, on the CPU."""
    for stored in batches(dataset, batch_size, num_workers):
        yield augment.evaluate(stored)


class Estimate(JointEstimate, Protocol):
    """One estimate of a hand: its joints, and its mesh where there is one."""

    @property
    def verts_root_m(self) -> Tensor | None:
        """[B, V, 3] metres, camera axes, root joint at the origin."""


class RegressionTask(nn.Module, ABC):
    """Image in, joints out, with or without a mesh.

    With `average`, the EMA of the weights predicts in eval mode and is exported; training uses the
    live ones. A subclass may refuse a head in `check_head`, at the end of the constructor.
    """

    def __init__(
        self,
        backbone: ViT,
        head: Callable[..., nn.Module],  # called with `dim=`
        losses: Mapping[str, LossTerm],
        *,
        backbone_lr_scale: float = 1.0,
        layer_decay: float = 1.0,  # further factor on its learning rate per layer below the top
        step_weights: StepWeights = None,  # of refinement steps: None (equal), one each, or "last"
        trained_blocks: int | None = None,  # see `ViT.freeze_below`; None for all, 0 for none
        average: Mapping[str, Any] | float | None = None,  # of `Averaging`
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.mask_token.requires_grad_(False)  # nothing is masked any more
        self.head = head(dim=backbone.embed_dim)
        self.losses = CompositeLoss(losses, step_weights)
        self.backbone_lr_scale, self.layer_decay = backbone_lr_scale, layer_decay
        self._frozen = backbone.freeze_below(trained_blocks)
        self.averaging = averaging_of(average)
        self.averaged: EmaTeacher | None = None
        if self.averaging is not None:
            constant = self._frozen if self.hand is None else (self.hand, *self._frozen)
            self.averaged = EmaTeacher(self._live(), shared=constant)
        self.check_head(step_weights)

    def check_head(self, step_weights: StepWeights) -> None:
        """Refuse a head that does not fit the task."""

    def _live(self) -> nn.ModuleDict:
        return nn.ModuleDict({"backbone": self.backbone, "head": self.head})

    def _active(self, name: str) -> Any:
        """The "backbone" or "head" that predicts."""
        if self.training or self.averaged is None:
            return getattr(self, name)
        return self.averaged.net[name]

    @property
    def active_backbone(self) -> ViT:
        """The live backbone in training mode; its EMA, where one is kept, in eval mode."""
        backbone: ViT = self._active("backbone")
        return backbone

    @property
    def export_backbone(self) -> ViT:
        """The EMA of the backbone where one is kept, else the live one."""
        if self.averaged is None:
            return self.backbone
        kept: Any = self.averaged.net["backbone"]
        return kept

    @property
    @abstractmethod
    def hand(self) -> HandLayer | None:
        """The hand model that is regressed; None for bare joints."""

    @abstractmethod
    def outputs(self, batch: HandBatch) -> JointOutputs:
        """Augmented images to the start and all refinements, joints in the samples' rules."""

    @abstractmethod
    def predict(
        self,
        image: Tensor,
        joint_convention: Tensor | None = None,
        intrinsics: Intrinsics | None = None,
    ) -> Estimate:
        """The last estimate for images [B, 3, H, W] in [0, 1]; without joint conventions [B] in the
        hand model's own."""

    @abstractmethod
    def mean_estimate(self, batch: HandBatch) -> Estimate:
        """The estimate that the head starts from, the same for every image."""

    @abstractmethod
    def label_estimate(self, batch: HandBatch) -> Estimate:
        """The labels in the form of an estimate; raises ValueError where they do not suffice."""

    @abstractmethod
    def measure_labels(
        self, crops: Callable[[], Iterator[HandBatch]], device: torch.device
    ) -> None:
        """Set the head's start from `evaluation_crops`, which every call gives anew."""

    def start_from_labels(
        self,
        dataset: Dataset[HandSample],
        augment: HandAugment,
        device: torch.device,
        num_workers: int = 0,
        max_unreadable: float = 0.0,
    ) -> None:
        """Set the start of the head, and of averaged weights, from labels, with an initialised
        backbone. Of a larger set `MAX_IMAGES` are read, the same ones every time. A share
        `max_unreadable` of it, one sample at least, may be left out; 0 is none."""
        total = size_of(dataset)
        most = int(max(1.0, max_unreadable * total)) if max_unreadable else 0
        if total > MAX_IMAGES:
            order = np.random.default_rng(total).permutation(total)[:MAX_IMAGES]
            dataset = Subset(dataset, np.sort(order).tolist())
        readable = SkipUnreadable(dataset, most)
        self.measure_labels(partial(evaluation_crops, readable, augment, num_workers), device)
        if self.averaged is not None:
            self.averaged.net.load_state_dict(self._live().state_dict())

    def train(self, mode: bool = True) -> "RegressionTask":
        """As every module; frozen ones stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, batch: HandBatch, info: StepInfo) -> StepResult:
        """Losses of one augmented batch."""
        loss, scalars = self.losses(self.outputs(batch), batch, info)
        return StepResult(loss=loss, scalars={"loss": loss.detach(), **scalars})

    def before_update(self, info: StepInfo) -> None:
        """Nothing is frozen for a while here."""

    def after_step(self, info: StepInfo) -> dict[str, float]:
        """Update the moving average, where one is kept."""
        if self.averaging is None or self.averaged is None:
            return {}
        decay = self.averaging(info.step)
        self.averaged.update(self._live(), decay)
        return {"schedule/average_decay": decay}

    def lr_scales(self) -> dict[str, float]:
        """Lower rates for the backbone, falling towards its input."""
        top = self.backbone.depth + 1
        return {
            f"backbone.{name}": self.backbone_lr_scale
            * self.layer_decay ** (top - self.backbone.layer_of(name))
            for name, _ in self.backbone.named_parameters()
        }

    @torch.no_grad()
    def images(self, batch: HandBatch) -> dict[str, NDArray[np.uint8]]:
        """Input, prediction and ground truth of the first samples."""
        first = batch.part(0, NUM_IMAGES)
        estimate = self.predict(first.image, first.joint_convention, first.intrinsics)
        return {"predictions": draw_predictions(first, estimate, self.faces)}

    @property
    def faces(self) -> NDArray[np.int32] | None:
        """[F, 3] of the mesh, where there is one."""
        return None if self.hand is None else self.hand.faces

    @property
    def hand_sha256(self) -> str | None:
        """Of the hand model that vertices and betas belong to, where there is one."""
        return None if self.hand is None else self.hand.sha256

    def hand_metadata(self) -> dict[str, str]:
        """The hand model as checkpoints record it."""
        if self.hand is None:
            return {}
        return {"hand": self.hand.name, "hand_sha256": self.hand.sha256}
