"""Smooth joint losses of the regression: as `losses.joints`, but gentle near the truth.

They look at joints only, so they fit every head whose outputs hold them: a regressed hand model or
bare keypoints.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.losses.joints import root_relative
from handmim.losses.reduction import blanked, over_points
from handmim.types import HandBatch


class JointEstimate(Protocol):
    """One estimate of a hand's joints."""

    @property
    def joints_root_m(self) -> Tensor:
        """[B, 21, 3] metres, camera axes, root joint at the origin."""

    @property
    def joints_crop_ndc(self) -> Tensor:
        """[B, 21, 2] where they are seen."""


class JointOutputs(Protocol):
    """The estimate that a head starts from, then its refinements; the last is the answer."""

    @property
    def steps(self) -> Sequence[JointEstimate]:
        """T + 1 estimates."""


def smooth_l1(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    """Mean smooth L1 over the coordinates of every point.

    Args:
        pred, target: [B, P, C], any unit.
        beta: below it an error e counts e^2 / (2 beta), above it e - beta / 2; unit of the input.
    Returns: [B, P] in the unit of the input.
    """
    return F.smooth_l1_loss(pred.float(), target, reduction="none", beta=beta).mean(dim=-1)


class SmoothJoints3D(nn.Module):
    """Smooth L1 on root-relative joints, in units of `unit_m`; needs a labelled root.

    Args:
        root_joint: index of the root in the 21 joints.
        unit_m: metres per unit; 0.1 gives errors the size of those in crop ndc.
        beta: in these units.
    """

    def __init__(self, *, root_joint: int, unit_m: float = 0.1, beta: float = 0.1) -> None:
        super().__init__()
        if unit_m <= 0 or beta < 0:
            raise ValueError(
                f"need unit_m > 0 and beta >= 0, got {unit_m} and {beta} "
                "(configs/loss/direct_keypoints.yaml)"
            )
        self.root_joint, self.unit_m, self.beta = root_joint, unit_m, beta

    def forward(self, out: JointOutputs, batch: HandBatch) -> Tensor:
        """[T] units of `unit_m`."""
        target, valid = root_relative(batch, self.root_joint)
        errors = [
            smooth_l1(step.joints_root_m / self.unit_m, target / self.unit_m, self.beta)
            for step in out.steps[1:]
        ]
        return torch.stack([over_points(error, valid) for error in errors])


class SmoothJoints2D(nn.Module):
    """Smooth L1 on the joints' places in the picture, crop ndc, each weighted by its confidence.

    Args:
        beta: in ndc.
    """

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        if beta < 0:
            raise ValueError(f"need beta >= 0, got {beta} (configs/loss/direct_keypoints.yaml)")
        self.beta = beta

    def forward(self, out: JointOutputs, batch: HandBatch) -> Tensor:
        """[T] ndc."""
        valid, conf = batch.kp2d_valid, batch.kp2d_conf
        target = blanked(batch.kp2d_crop_ndc, valid)
        errors = [smooth_l1(s.joints_crop_ndc, target, self.beta) for s in out.steps[1:]]
        return torch.stack([over_points(error, valid, conf) for error in errors])
