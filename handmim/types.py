"""Samples, batches, outputs and the base of tasks. No maths.

Letters used everywhere: B batch, G views, L local crops, N patches, D width, P prototypes, K
pseudo-keypoints of d = 2 or 3 numbers, J=21 joints, V=778 vertices, T refinement steps, h w token
grid, H W pixels, M masked patches in the whole batch.

Frames: `cam` OpenCV camera (x right, y down, z forward), `root` camera axes with the root joint at
the origin, `crop` pixels of the square crop, `ndc` the crop as [-1, 1]^2 (left edge -1, right edge
+1, so pixel centres are those of `align_corners=False`), `source` the ndc of the stored crop that
views are cut from. Pixel coordinates put the image on [0, W] x [0, H]: the centre of the first
pixel is (0.5, 0.5). Metres and radians inside; millimetres only in results.

Batches are NamedTuples: collate, pinning, device moves and precision plugins all walk them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class CropSample:
    """One unlabeled square hand crop."""

    image: NDArray[np.uint8]  # [S, S, 3] RGB
    sample_id: str
    # [S, S, 3] another photo of exactly this hand at this position (FreiHAND's other backgrounds)
    partner: NDArray[np.uint8] | None = None
    group: str | None = None  # samples of one group show nearly the same hand


@dataclass(frozen=True)
class HandSample:
    """One labelled square hand crop, in our frame, unit and joint order. Missing labels are zeros
    with their flag off; a flag that is on promises finite numbers."""

    image: NDArray[np.uint8]  # [S, S, 3] RGB
    sample_id: str
    is_right: bool  # left hands are labelled as left hands
    joint_convention: str  # a name of hand.skeleton.JOINT_CONVENTIONS
    K_crop_px: NDArray[np.float32]  # [3, 3] intrinsics of this crop, where has_K
    has_K: bool
    kp2d_crop_px: NDArray[np.float32]  # [21, 2]
    kp2d_valid: NDArray[np.bool_]  # [21]
    kp2d_conf: NDArray[np.float32]  # [21] in [0, 1]: 0 where invalid, 1 where none is given
    joints_cam_m: NDArray[np.float32]  # [21, 3]; only the differences count when has_K is off
    joints_valid: NDArray[np.bool_]  # [21]
    verts_cam_m: NDArray[np.float32]  # [V, 3]
    has_verts: bool
    rotmats: NDArray[np.float32]  # [16, 3, 3] R_cam_from_mano, then absolute finger rotations
    betas: NDArray[np.float32]  # [10]
    has_mano: bool


class CropBatch(NamedTuple):
    """Unlabeled crops as the loader collates them, before views are made on the device."""

    image: Tensor  # [B, 3, S, S] uint8
    partner: Tensor | None = None  # [B, 3, S, S] uint8, the same hand at the same position again
    group: Tensor | None = None  # [B] int64; equal numbers show nearly the same hand


class PretrainBatch(NamedTuple):
    """Two (or more) views of every source crop. A point p of a view lies at source_from_view (p +
    d(p)) of the source crop, d the smooth field that `displacement_ndc` spans (geometry.crop), or
    0."""

    views: Tensor  # [B, G, 3, H, W] in [0, 1], after colour augmentation
    source_from_view: Tensor  # [B, G, 2, 3] fp32, view ndc -> source ndc
    is_masked: Tensor  # [B, G, N] bool, True = masked for the student
    displacement_ndc: Tensor | None = None  # [B, G, 2, c, c] control values of the known warp
    clean_views: Tensor | None = None  # [B, G, 3, H, W] the views before colour augmentation
    local_views: Tensor | None = None  # [B, L, 3, h, w] small crops for the class losses
    group: Tensor | None = None  # [B] int64; equal numbers are no negatives of each other
    known_masked_idx: Tensor | None = None  # [M] int64, see masked_idx
    num_masked: tuple[int, ...] | None = None  # of each sample, B numbers on the host, likewise

    @property
    def masked_idx(self) -> Tensor:
        """[M] int64 positions of the masked patches in `is_masked.flatten()`, ascending. Drawn
        masks bring them along: a search would wait for the device."""
        if self.known_masked_idx is not None:
            return self.known_masked_idx
        return self.is_masked.flatten().nonzero().squeeze(1)

    def part(self, start: int, stop: int) -> "PretrainBatch":
        """Samples from start to stop, which may lie behind the last."""
        whole: Any = self
        fields: Any = [None if field is None else field[start:stop] for field in whole]
        part = PretrainBatch(*fields)
        if self.known_masked_idx is None or self.num_masked is None:
            return part
        first, num = sum(self.num_masked[:start]), sum(self.num_masked[start:stop])
        masked_idx = self.known_masked_idx[first : first + num] - start * self.is_masked[0].numel()
        return part._replace(known_masked_idx=masked_idx)


class HandBatch(NamedTuple):
    """Labelled crops: uint8 source crops from the loader, or augmented model input in [0, 1] after
    `prepare`. All are right hands: left ones are mirrored, and flagged."""

    image: Tensor  # [B, 3, S, S] uint8, later [B, 3, H, W] in [0, 1]
    was_left: Tensor  # [B] bool
    joint_convention: Tensor  # [B] int64, index in hand.skeleton.CONVENTION_NAMES
    K_crop_px: Tensor  # [B, 3, 3]
    has_K: Tensor  # [B] bool
    kp2d_crop_ndc: Tensor  # [B, 21, 2]
    kp2d_valid: Tensor  # [B, 21] bool
    kp2d_conf: Tensor  # [B, 21] in [0, 1], 0 where invalid
    joints_cam_m: Tensor  # [B, 21, 3]
    joints_valid: Tensor  # [B, 21] bool
    verts_cam_m: Tensor  # [B, V, 3]
    has_verts: Tensor  # [B] bool
    rotmats: Tensor  # [B, 16, 3, 3]
    betas: Tensor  # [B, 10]
    has_mano: Tensor  # [B] bool

    @property
    def intrinsics(self) -> "Intrinsics":
        """Camera intrinsics of these crops, where known."""
        return Intrinsics(self.K_crop_px, self.has_K, self.image.shape[-1])

    def part(self, start: int, stop: int) -> "HandBatch":
        """Samples from start to stop, which may lie behind the last."""
        return HandBatch(*(field[start:stop] for field in self))

    def moved(self, device: torch.device) -> "HandBatch":
        """The same batch on a device."""
        return HandBatch(*(field.to(device) for field in self))


class Intrinsics(NamedTuple):
    """Camera intrinsics of crops, where known."""

    K_crop_px: Tensor  # [B, 3, 3]
    has_K: Tensor  # [B] bool
    img_px: int  # side of the crops that K is for


class Tokens(NamedTuple):
    """Output of a backbone: the class token and the patch tokens in row-major grid order."""

    cls: Tensor  # [B, D]
    # [B, N, D], only the visible ones where masked ones were dropped; [M, D] where only some
    # positions were requested
    patches: Tensor
    grid_hw: tuple[int, int]  # N = h * w
    taps: tuple[Tensor, ...] = ()  # patch tokens of the requested blocks, normed
    local_cls: Tensor | None = None  # [b, D] class tokens of local crops that went along


class HandState(NamedTuple):
    """One refinement step's estimate of the hand."""

    rotmats: Tensor  # [B, 16, 3, 3]
    betas: Tensor  # [B, 10]
    cam: Tensor  # [B, 3] log(s / s0), tx_m, ty_m
    verts_root_m: Tensor  # [B, V, 3]
    joints_root_m: Tensor  # [B, 21, 3]
    verts_crop_ndc: Tensor  # [B, V, 2]
    joints_crop_ndc: Tensor  # [B, 21, 2]
    # Root translation in camera axes: [B, 3], in metres where is_metric [B] bool is
    # on (the crop's intrinsics are known), zero elsewhere. None where a head does not predict it.
    transl_cam_m: Tensor | None = None
    is_metric: Tensor | None = None


class HandOutputs(NamedTuple):
    """The mean hand that the head starts from, all refinement steps, and auxiliary maps."""

    steps: tuple[HandState, ...]  # T + 1
    heatmaps: Tensor | None = None  # [B, 21, h, w] of the joints in the crop
    silhouette: Tensor | None = None  # [B, h, w] logits of the hand's pixels


class StepInfo(NamedTuple):
    """Position in training; every schedule is a function of it."""

    step: int
    total_steps: int


# Samples -> batch; batch on the device -> augmented batch, which draws from the generator only.
Collate = Callable[[list[Any]], Any]
Prepare = Callable[[Any, torch.Generator, StepInfo], Any]


class StepResult(NamedTuple):
    """Result of one training step. `scalars` stay on the device until they are logged."""

    loss: Tensor
    scalars: dict[str, Tensor]


class Task(nn.Module):
    """A training method; its forward, of a batch and a `StepInfo`, gives a `StepResult`."""

    def before_update(self, info: StepInfo) -> None:
        """Runs between backward and optimizer: cancels gradients of frozen parameters."""

    def after_step(self, info: StepInfo) -> dict[str, float]:
        """Runs after the optimizer: EMA, centres. Returns scalars worth logging."""
        return {}

    def lr_scales(self) -> dict[str, float]:
        """Factor on the learning rate by parameter name; names left out count 1."""
        return {}

    def images(self, batch: Any) -> dict[str, NDArray[np.uint8]]:
        """[H, W, 3] RGB images of this batch, by name; in evaluation mode."""
        return {}
