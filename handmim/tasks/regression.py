"""Supervised regressions: what all share, and that of bare joints."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from handmim.data.augment import HandAugment
from handmim.data.datasets import size_of
from handmim.data.loader import SkipUnreadable, batches
from handmim.data.unlabeled import JointBatch
from handmim.diagnostics.images import draw_predictions
from handmim.geometry.camera import fit_weak
from handmim.hand.model import HandLayer
from handmim.hand.skeleton import ROOT_JOINT
from handmim.losses.composite import CompositeLoss, LossTerm, StepWeights
from handmim.models.heads.direct import DirectHead, KeypointState
from handmim.models.teacher import EmaTeacher, averaging_of
from handmim.models.token_norm import LABELLED, TokenNorm
from handmim.models.vit import ViT
from handmim.tasks.unlabeled import UnlabeledTerm
from handmim.types import HandBatch, HandSample, Intrinsics, StepInfo, StepResult, Task
from handmim.utils.arguments import below_one

NUM_IMAGES = 8
MAX_IMAGES = 2048  # that the start is measured on
Crops = Callable[[], Iterator[HandBatch]]


def evaluation_crops(
    dataset: Dataset[HandSample], augment: HandAugment, num_workers: int = 0, batch_size: int = 256
) -> Iterator[HandBatch]:
    """Labelled samples in the crops that evaluation uses, on the CPU."""
    return map(augment.evaluate, batches(dataset, batch_size, num_workers))


class RegressionTask(Task, ABC):
    """Image in, joints out, with or without a mesh. With `average`, the EMA of the weights predicts
    in eval mode and is exported; training uses the live ones. With `head_first`, the head is
    trained alone at first, so that a random one does not distort the features (LP-FT, Kumar et al.
    2022, arXiv 2202.10054)."""

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
        head_first: float = 0.0,  # share of the steps, in [0, 1), in which the backbone waits
        token_norm: str | None = None,  # which tokens `TokenNorm` standardises for the head
    ) -> None:
        super().__init__()
        below_one(head_first=head_first)
        self.backbone = backbone
        self.backbone.mask_token.requires_grad_(False)  # nothing is masked any more
        self.head = head(dim=backbone.embed_dim)
        self.token_norm: TokenNorm | None = None
        if token_norm is not None:
            taps: Any = self.head.tapped_blocks
            self.token_norm = TokenNorm(backbone.embed_dim, token_norm, len(taps))
        self.unlabeled = nn.ModuleDict()  # terms of `add_unlabeled`
        self.losses = CompositeLoss(losses, step_weights)
        self.backbone_lr_scale, self.layer_decay = backbone_lr_scale, layer_decay
        self.head_first = head_first
        self._frozen = backbone.freeze_below(trained_blocks)
        self.averaging = averaging_of(average)
        self.averaged: EmaTeacher | None = None
        if self.averaging is not None:
            constant = self._frozen if self.hand is None else (self.hand, *self._frozen)
            self.averaged = EmaTeacher(self._live(), shared=constant)
        self.check_head(step_weights)

    def check_head(self, step_weights: StepWeights) -> None:
        """Refuse a head that does not fit the task."""

    def add_unlabeled(self, terms: Mapping[str, UnlabeledTerm]) -> None:
        """Train by further terms on unlabeled crops, whose views batches then hold by name."""
        for name, term in terms.items():
            term.join(self)
            self.unlabeled[name] = term

    @property
    def terms(self) -> dict[str, Any]:
        """The terms on unlabeled crops, by name."""
        return dict(self.unlabeled.items())

    def _live(self) -> nn.ModuleDict:
        parts = {"backbone": self.backbone, "head": self.head}
        if self.token_norm is not None:
            parts["token_norm"] = self.token_norm
        return nn.ModuleDict(parts)

    def _active(self, name: str) -> Any:
        """The "backbone", "head" or "token_norm" that predicts."""
        if self.training or self.averaged is None:
            return getattr(self, name)
        return self.averaged.net[name]

    def predicting(self) -> nn.Module:
        """Modules of the weights that predict: averaged ones, where they are kept."""
        return self._live() if self.averaged is None else self.averaged.net

    @property
    def active_backbone(self) -> ViT:
        """The live backbone in training mode; its EMA, where one is kept, in eval mode."""
        return self._active("backbone")

    @property
    def export_backbone(self) -> ViT:
        """The EMA of the backbone where one is kept, else the live one."""
        net: Any = self.predicting()
        return net.backbone

    @property
    def hand(self) -> HandLayer | None:
        """The hand model that is regressed; None for bare joints."""
        return getattr(self.head, "hand", None)

    def refinements(
        self,
        image: Tensor,
        intrinsics: Intrinsics | None = None,
        domain: str | None = None,
        *,
        as_teacher: bool = False,
        head_alone: bool = False,
    ) -> Any:
        """Images to the start and all refinements, joints in the head's own convention; `domain` as
        `TokenNorm` takes it. `as_teacher` predicts by averaged weights while the live ones train,
        tokens by moments of the batch. With `head_alone`, no gradient reaches the backbone."""
        averaged = self.averaged if as_teacher else None
        part: Any = self._active if averaged is None else averaged.net.__getitem__
        head = part("head")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not head_alone):
            tokens = part("backbone")(image, taps=head.tapped_blocks)
        if self.token_norm is not None:
            tokens = part("token_norm")(tokens, domain, of_batch=as_teacher)
        return head(tokens, intrinsics)

    def in_convention(self, state: Any, convention: Tensor, intrinsics: Intrinsics | None) -> Any:
        """Joints of a state by [B] joint conventions; bare ones stay as training labels are."""
        return state

    def outputs(self, batch: HandBatch, *, head_alone: bool = False) -> Any:
        """Augmented images to the start and all refinements, joints in the samples' conventions."""
        convention, intrinsics = batch.joint_convention, batch.intrinsics
        domain = LABELLED if self.training else None
        out = self.refinements(batch.image, intrinsics, domain, head_alone=head_alone)
        steps = tuple(self.in_convention(state, convention, intrinsics) for state in out.steps)
        return out._replace(steps=steps)

    def predict(
        self,
        image: Tensor,
        joint_convention: Tensor | None = None,
        intrinsics: Intrinsics | None = None,
        domain: str | None = None,
    ) -> Any:
        """The last estimate for images [B, 3, H, W] in [0, 1]; joints by [B] conventions; `domain`
        as `TokenNorm` takes it."""
        state = self.refinements(image, intrinsics, domain).steps[-1]
        if joint_convention is None:
            return state
        return self.in_convention(state, joint_convention, intrinsics)

    @abstractmethod
    def mean_estimate(self, batch: HandBatch) -> Any:
        """The estimate that the head starts from, the same for every image."""

    @abstractmethod
    def label_estimate(self, batch: HandBatch) -> Any:
        """The labels in the form of an estimate; raises ValueError where they do not suffice."""

    @abstractmethod
    def measure_labels(self, crops: Crops, device: torch.device) -> None:
        """Set the head's start from `evaluation_crops`, which every call gives anew."""

    def start_from_labels(
        self,
        dataset: Dataset[HandSample],
        augment: HandAugment,
        device: torch.device,
        num_workers: int = 0,
        max_unreadable: float = 0.0,
    ) -> None:
        """Set the start of the head, and of averaged weights, from `MAX_IMAGES` labels, the same
        ones every time. A share `max_unreadable`, one sample at least but for 0, may be missing."""
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

    def head_alone(self, info: StepInfo) -> bool:
        """Whether the backbone waits at a step; it does not at the last one."""
        num = round(self.head_first * info.total_steps)
        return info.step < min(num, info.total_steps - 1)

    def forward(self, batch: HandBatch | JointBatch, info: StepInfo) -> StepResult:
        """Losses of one augmented batch. A backbone that waits drops no paths, as a frozen one."""
        hands = batch.hands if isinstance(batch, JointBatch) else batch
        head_alone = self.head_alone(info)
        if self.head_first:
            self.train(self.training)
        if head_alone:
            self.backbone.eval()
        loss, scalars = self.losses(self.outputs(hands, head_alone=head_alone), hands, info)
        for name, term in self.terms.items():
            assert isinstance(batch, JointBatch)
            added, of_term = term(self, batch.views[name], info)
            loss = loss + added
            scalars |= {f"{name}/{key}": value for key, value in of_term.items()}
        total = loss
        if head_alone:  # several processes wait for a gradient of each parameter: these get 0
            total = loss + 0.0 * sum(p.sum() for p in self.backbone.parameters() if p.requires_grad)
        return StepResult(loss=total, scalars={"loss": loss.detach(), **scalars})

    def before_update(self, info: StepInfo) -> None:
        """A backbone that waits is left alone: no update, no decay, no moments."""
        for term in self.terms.values():
            term.before_update(info)
        if self.head_alone(info):
            for parameter in self.backbone.parameters():
                parameter.grad = None

    def after_step(self, info: StepInfo) -> dict[str, float]:
        """Update the moving average, where one is kept."""
        scalars: dict[str, float] = {}
        for name, term in self.terms.items():
            scalars |= {f"{name}/{key}": value for key, value in term.after_step(info).items()}
        if self.averaging is None or self.averaged is None:
            return scalars
        decay = self.averaging(info.step)
        self.averaged.update(self._live(), decay)
        return {"schedule/average_decay": decay, **scalars}

    @torch.no_grad()
    def measure_tokens(self, domain: str, images: Iterable[Tensor]) -> None:
        """Set the moments of `TokenNorm` from images [B, 3, H, W] in [0, 1] of a domain, with the
        weights that predict; in eval mode. Averaged weights take buffers of the live ones at
        every step, so these get them, too."""
        norm, taps = self._active("token_norm"), self._active("head").tapped_blocks
        norm.measure(domain, (self.active_backbone(image, taps=taps) for image in images))
        if self.token_norm is not None and norm is not self.token_norm:
            self.token_norm.load_state_dict(norm.state_dict())

    def lr_scales(self) -> dict[str, float]:
        """Lower rates for the backbone, falling towards its input."""
        top = self.backbone.depth + 1
        return {
            f"backbone.{name}": self.backbone_lr_scale
            * self.layer_decay ** (top - self.backbone.layer_of(name))
            for name, _ in self.backbone.named_parameters()
        }

    @torch.no_grad()
    def images(self, batch: HandBatch | JointBatch) -> dict[str, NDArray[np.uint8]]:
        """Input, prediction and ground truth of the first samples."""
        batch = batch.hands if isinstance(batch, JointBatch) else batch
        first = batch.part(0, NUM_IMAGES)
        estimate = self.predict(first.image, first.joint_convention, first.intrinsics)
        faces = getattr(self.hand, "faces", None)
        return {"predictions": draw_predictions(first, estimate, faces)}

    def hand_metadata(self) -> dict[str, str]:
        """The hand model of vertices and betas, where there is one, as checkpoints record it."""
        hand = self.hand
        return {} if hand is None else {"hand": hand.name, "hand_sha256": hand.sha256}


class KeypointRegressionTask(RegressionTask):
    """Regression of 21 joints without a hand model: root-relative in metres, and in the image. They
    cannot be carried from one definition to another: the task learns that of its training labels,
    and a mix of sources trains it towards something between theirs."""

    head: DirectHead

    def mean_estimate(self, batch: HandBatch) -> KeypointState:
        """The mean of the training labels, for every image."""
        return self.head.mean_state(len(batch.image))

    def label_estimate(self, batch: HandBatch) -> KeypointState:
        """The labelled joints."""
        labelled = batch.joints_valid.any(dim=1) | batch.kp2d_valid.any(dim=1)
        if not bool(labelled.all()):
            raise ValueError("predictor=ground_truth needs labels, and this set has none")
        root = batch.joints_cam_m[:, ROOT_JOINT, None]
        return KeypointState(batch.joints_cam_m - root, batch.kp2d_crop_ndc)

    def measure_labels(self, crops: Crops, device: torch.device) -> None:
        """The mean joints, and where the head needs it the mean scale."""
        self.head.set_mean_joints(*mean_joints(crops()))
        if self.head.coords == "25d":
            self.head.set_mean_scale(mean_scale(crops()))


@torch.no_grad()
def mean_joints(crops: Iterable[HandBatch]) -> tuple[Tensor, Tensor]:
    """Mean of the labels, joint by joint over the samples that have it, else 0: [21, 3]
    root-relative metres and [21, 2] crop ndc. Raises: ValueError when no sample has a joint."""
    total, count = torch.zeros(21, 5, dtype=torch.float64), torch.zeros(21, 2, dtype=torch.int64)
    columns = torch.tensor([3, 2])
    for batch in crops:
        root = batch.joints_cam_m[:, ROOT_JOINT, None]
        in_3d = batch.joints_valid & batch.joints_valid[:, ROOT_JOINT, None]
        labels = torch.cat([batch.joints_cam_m - root, batch.kp2d_crop_ndc], dim=-1).double()
        valid = torch.stack([in_3d, batch.kp2d_valid], dim=-1)
        total += torch.where(valid.repeat_interleave(columns, dim=-1), labels, 0.0).sum(dim=0)
        count += valid.sum(dim=0)
    if not int(count.sum()):
        raise ValueError("no training sample has a joint in 2D, or in 3D with the root (data)")
    mean = total / count.clamp(min=1).repeat_interleave(columns, dim=-1)
    return mean[:, :3].float(), mean[:, 3:].float()


@torch.no_grad()
def mean_scale(crops: Iterable[HandBatch], scale0_per_m: float = 8.0) -> float:
    """Geometric mean of the hands' sizes in the image, ndc units per metre of the least-squares
    weak-perspective camera, over samples with all joints in 3D and 2D; else `scale0_per_m`."""
    logs = []
    for batch in crops:
        whole = batch.joints_valid.all(dim=1) & batch.kp2d_valid.all(dim=1)
        joints = batch.joints_cam_m[whole]
        root = joints[:, ROOT_JOINT, None]
        logs.append(fit_weak(joints - root, batch.kp2d_crop_ndc[whole], scale0_per_m)[:, 0])
    sizes = torch.cat(logs)
    return scale0_per_m * (float(sizes.mean().exp()) if len(sizes) else 1.0)
