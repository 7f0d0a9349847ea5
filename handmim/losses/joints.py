"""Joint losses of the regression: relative to the root joint, in the camera frame, in the crop.

They read joints only, so they fit every head whose outputs hold them: a regressed hand model or
bare keypoints. How they are averaged: `losses.reduction`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.losses.composite import LossTerm
from handmim.losses.reduction import over_points, zero_invalid
from handmim.types import HandBatch, HandOutputs

NOT_METRIC = (
    "joints3d_abs compares hands in metres in the camera frame, and this head gives no root "
    "translation: task.head.camera=pinhole, or leave joints3d_abs out of loss=[...]"
)


class JointEstimate(Protocol):
    """One estimate of a hand's joints."""

    @property
    def joints_root_m(self) -> Tensor:
        """[B, 21, 3] metres, camera axes, root joint at the origin."""

    @property
    def joints_crop_ndc(self) -> Tensor:
        """[B, 21, 2] positions in the crop."""


class JointOutputs(Protocol):
    """The estimate that a head starts from, then its refinements; the last is the prediction."""

    @property
    def steps(self) -> Sequence[JointEstimate]:
        """T + 1 estimates."""


def root_relative(batch: HandBatch, root_joint: int) -> tuple[Tensor, Tensor]:
    """Labelled joints [B, 21, 3] in metres from the root joint, and which of them are known, [B,
    21] bool: none without the root."""
    valid = batch.joints_valid & batch.joints_valid[:, root_joint, None]
    relative = batch.joints_cam_m - batch.joints_cam_m[:, root_joint, None]
    return zero_invalid(relative, valid), valid


def point_error(pred: Tensor, target: Tensor, beta: float = 0.0) -> Tensor:
    """Mean smooth L1 over the coordinates of every point.

    Args:
        pred, target: [B, P, C], any unit.
        beta: below it an error e counts e^2 / (2 beta), above it e - beta / 2; unit of the input.
            0 is L1.
    Returns: [B, P] in the unit of the input.
    """
    return F.smooth_l1_loss(pred.float(), target, reduction="none", beta=beta).mean(dim=-1)


class JointLoss(LossTerm):
    """L1 or smooth L1 on root-relative joints; needs a labelled root.

    Args:
        root_joint: index of the root in the 21 joints.
        weight: of the loss.
        unit_m: metres per unit of the error; 0.1 gives errors the size of those in crop ndc.
        beta: where smooth L1 becomes linear, in these units; 0 is L1.
    """

    def __init__(
        self,
        *,
        root_joint: int,
        weight: float | Schedule = 1.0,
        unit_m: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        super().__init__(weight)
        if unit_m <= 0 or beta < 0:
            raise ValueError(f"unit_m must be > 0 and beta >= 0, got {unit_m} and {beta}")
        self.root_joint, self.unit_m, self.beta = root_joint, unit_m, beta

    def forward(self, out: JointOutputs, batch: HandBatch) -> Tensor:
        """[T] units of `unit_m`."""
        target, valid = root_relative(batch, self.root_joint)
        errors = [
            point_error(step.joints_root_m / self.unit_m, target / self.unit_m, self.beta)
            for step in out.steps[1:]
        ]
        return torch.stack([over_points(error, valid) for error in errors])


class JointLoss2D(LossTerm):
    """L1 or smooth L1 on joints in the crop, each weighted by its confidence.

    Args:
        weight: of the loss.
        beta: where smooth L1 becomes linear, in ndc; 0 is L1.
    """

    def __init__(self, *, weight: float | Schedule = 1.0, beta: float = 0.0) -> None:
        super().__init__(weight)
        if beta < 0:
            raise ValueError(f"beta must be >= 0, got {beta}")
        self.beta = beta

    def forward(self, out: JointOutputs, batch: HandBatch) -> Tensor:
        """[T] ndc."""
        valid, conf = batch.kp2d_valid, batch.kp2d_conf
        target = zero_invalid(batch.kp2d_crop_ndc, valid)
        errors = [point_error(s.joints_crop_ndc, target, self.beta) for s in out.steps[1:]]
        return torch.stack([over_points(error, valid, conf) for error in errors])


class CameraJointLoss(LossTerm):
    """L1 on joints in the camera frame, metres.

    Counts for samples whose intrinsics are known, of an estimate with a metric root translation; a
    batch without any costs nothing.
    """

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] metres. Raises: ValueError when the head has no root translation."""
        terms = []
        valid = batch.joints_valid & batch.has_K[:, None]
        target = zero_invalid(batch.joints_cam_m, valid)
        for step in out.steps[1:]:
            # Bare joints have no such fields.
            transl_cam_m = getattr(step, "transl_cam_m", None)
            is_metric = getattr(step, "is_metric", None)
            if transl_cam_m is None or is_metric is None:
                raise ValueError(NOT_METRIC)
            joints_cam_m = step.joints_root_m.float() + transl_cam_m[:, None]
            error = point_error(joints_cam_m, target)
            terms.append(over_points(error, valid & is_metric[:, None]))
        return torch.stack(terms)
