"""What all supervised regressions share: backbone, head, losses, and the few questions that
training and scoring ask."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from handmim.data.augment import HandAugment
from handmim.data.loader import SkipUnreadable
from handmim.hand.model import HandLayer
from handmim.losses.composite import CompositeLoss, LossTerm
from handmim.losses.joints import JointEstimate, JointOutputs
from handmim.losses.reduction import StepWeights
from handmim.models.averaging import averaging_of
from handmim.models.freezing import freeze_below
from handmim.models.teacher import EmaTeacher
from handmim.models.vit import ViT
from handmim.tasks.prediction_images import draw_predictions
from handmim.types import HandBatch, HandSample, Intrinsics, StepInfo, StepResult, Tokens

PICTURES = 8


class Estimate(JointEstimate, Protocol):
    """One estimate of a hand: its joints, and its mesh where there is one."""

    @property
    def verts_root_m(self) -> Tensor | None:
        """[B, V, 3] metres, camera axes, root joint at the origin."""


class RegressionTask(nn.Module, ABC):
    """Picture in, joints out, with or without a mesh.

    With `average`, the moving average of the weights answers in eval mode and is exported; training
    looks at the live ones.

    Args:
        backbone: ViT; `init_from` fills it before training.
        head: constructor of the head, called with `dim=`.
        losses: weighted terms by name.
        backbone_lr_scale: factor on the learning rate of the whole backbone.
        layer_decay: further factor per layer below the top.
        step_weights: of refinement steps in every loss that scores them: None (equal), one number
            each, or "last".
        trained_blocks: of the backbone, see `freeze_below`; None for all of it, 0 for none.
        average: settings of `Averaging`; None keeps no average.
    """

    def __init__(
        self,
        backbone: ViT,
        head: Callable[..., nn.Module],
        losses: Mapping[str, LossTerm],
        *,
        backbone_lr_scale: float = 1.0,
        layer_decay: float = 1.0,
        step_weights: StepWeights = None,
        trained_blocks: int | None = None,
        average: Mapping[str, Any] | float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.mask_token.requires_grad_(False)  # nothing is hidden any more
        self.head = head(dim=backbone.embed_dim)
        self.losses = CompositeLoss(losses, step_weights)
        self.backbone_lr_scale, self.layer_decay = backbone_lr_scale, layer_decay
        self._frozen = freeze_below(backbone, trained_blocks)
        self.averaging = averaging_of(average)
        self.averaged: EmaTeacher | None = None
        if self.averaging is not None:
            constant = self._frozen if self.hand is None else (self.hand, *self._frozen)
            self.averaged = EmaTeacher(self._followed(), shared=constant)

    def _followed(self) -> nn.ModuleDict:
        """What is averaged."""
        return nn.ModuleDict({"backbone": self.backbone, "head": self.head})

    def _answering(self, name: str) -> Any:
        """The part, "backbone" or "head", that answers: live or averaged."""
        if self.training or self.averaged is None:
            return getattr(self, name)
        return self.averaged.net[name]

    @property
    def answering_backbone(self) -> ViT:
        """The live backbone in training mode; its average, where one is kept, in eval mode."""
        backbone: ViT = self._answering("backbone")
        return backbone

    @property
    def export_backbone(self) -> ViT:
        """The backbone worth keeping: the averaged one where there is one."""
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
        """Augmented pictures to the start and all refinements, joints in the samples' rules."""

    @abstractmethod
    def mean_estimate(self, batch: HandBatch) -> Estimate:
        """What is said of every picture before looking at it."""

    @abstractmethod
    def true_estimate(self, batch: HandBatch) -> Estimate:
        """The labels in the form of an answer.

        Raises: ValueError where they do not suffice.
        """

    @abstractmethod
    def measure_labels(
        self,
        dataset: Dataset[HandSample],
        augment: HandAugment,
        device: torch.device,
        num_workers: int,
    ) -> None:
        """Give the head what it measures from; arguments as `start_from_labels`."""

    def start_from_labels(
        self,
        dataset: Dataset[HandSample],
        augment: HandAugment,
        device: torch.device,
        max_pictures: int = 2048,
        num_workers: int = 0,
        max_unreadable: float = 0.0,
    ) -> None:
        """Give the head what it measures from, the backbone being initialised already; averaged
        weights start here.

        Args:
            dataset: labelled training crops.
            augment: whose evaluation crop is used.
            device: where pictures are looked at.
            max_pictures: of a larger set so many are looked at, the same ones every time.
            num_workers: loader processes.
            max_unreadable: share of the set that may be left out, one sample at least; 0 is none.
        """
        share = max_unreadable * len(dataset)  # type: ignore[arg-type]
        most = int(max(1.0, share)) if max_unreadable else 0
        looked_at = SkipUnreadable(some_of(dataset, max_pictures), most)
        self.measure_labels(looked_at, augment, device, num_workers)
        if self.averaged is not None:
            self.averaged.net.load_state_dict(self._followed().state_dict())

    @abstractmethod
    def answer(
        self,
        image: Tensor,
        joint_convention: Tensor | None = None,
        intrinsics: Intrinsics | None = None,
    ) -> Estimate:
        """The last estimate for pictures, of which nothing else need be known.

        Args:
            image: [B, 3, H, W] in [0, 1].
            joint_convention: [B] convention of the joints, where there is a mesh to take them from;
                None takes the hand model's own.
            intrinsics: of the pictures; None where nothing is known of the camera.
        """

    def estimate(self, batch: HandBatch) -> Estimate:
        """The answer for augmented pictures in the samples' joint rules."""
        return self.answer(batch.image, batch.joint_convention, batch.intrinsics)

    def tokens(self, image: Tensor, taps: Sequence[int] = ()) -> Tokens:
        """Pictures through the backbone.

        Args:
            image: [B, 3, H, W] in [0, 1].
            taps: blocks whose patch tokens are wanted too.
        """
        return self.answering_backbone(image, taps=taps)

    def train(self, mode: bool = True) -> "RegressionTask":
        """As every module; what is frozen stays as in evaluation."""
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
        """The average follows the optimizer, where one is kept."""
        if self.averaging is None or self.averaged is None:
            return {}
        decay = self.averaging(info.step)
        self.averaged.update(self._followed(), decay)
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
        """Input, prediction and truth of the first samples."""
        training = self.training
        self.eval()
        first = HandBatch(*(field[:PICTURES] for field in batch))
        try:
            estimate = self.estimate(first)
        finally:
            self.train(training)
        return {"predictions": draw_predictions(first, estimate, self.faces, PICTURES)}

    @property
    def faces(self) -> NDArray[np.int32] | None:
        """[F, 3] of the mesh, where there is one."""
        return None if self.hand is None else self.hand.faces

    @property
    def hand_sha256(self) -> str | None:
        """Of the hand model whose vertices and betas are meant, where there is one."""
        return None if self.hand is None else self.hand.sha256

    def hand_facts(self) -> dict[str, str]:
        """What a checkpoint remembers of the hand model."""
        if self.hand is None:
            return {}
        return {"hand": self.hand.name, "hand_sha256": self.hand.sha256}


def some_of(dataset: Dataset[HandSample], max_pictures: int) -> Dataset[HandSample]:
    """At most so many samples of a set, spread over it, the same ones every time."""
    total = len(dataset)  # type: ignore[arg-type]
    if total <= max_pictures:
        return dataset
    order = np.random.default_rng(total).permutation(total)[:max_pictures]
    return Subset(dataset, np.sort(order).tolist())
