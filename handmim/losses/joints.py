"""Joint losses of the regression: 3D relative to the root joint, 3D before the camera, and 2D in
the crop. How they are averaged: `losses.reduction`."""

import torch
from torch import Tensor, nn

from handmim.losses.reduction import blanked, over_points
from handmim.types import HandBatch, HandOutputs


def root_relative(batch: HandBatch, root_joint: int) -> tuple[Tensor, Tensor]:
    """Labelled joints [B, 21, 3] in metres from the root joint, and which of them are known, [B,
    21] bool: none without the root."""
    valid = batch.joints_valid & batch.joints_valid[:, root_joint, None]
    return blanked(batch.joints_cam_m - batch.joints_cam_m[:, root_joint, None], valid), valid


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute coordinate error of every point: [B, P, C] twice to [B, P]."""
    return (pred.float() - target).abs().mean(dim=-1)


class Joints3D(nn.Module):
    """L1 on root-relative joints in metres; needs a labelled root.

    Args:
        root_joint: index of the root in the 21 joints.
    """

    def __init__(self, *, root_joint: int) -> None:
        super().__init__()
        self.root_joint = root_joint

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] metres."""
        target, valid = root_relative(batch, self.root_joint)
        steps = out.steps[1:]
        return torch.stack([over_points(l1(s.joints_root_m, target), valid) for s in steps])


class Joints3DAbs(nn.Module):
    """L1 on joints in the camera frame, metres.

    Counts for samples whose intrinsics are known, of an estimate that places hands in metres; a
    batch without any costs nothing.
    """

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] metres.

        Raises: ValueError when the head never places a hand in metres.
        """
        terms = []
        valid = batch.joints_valid & batch.has_K[:, None]
        target = blanked(batch.joints_cam_m, valid)
        for step in out.steps[1:]:
            # Bare joints have no such fields at all.
            transl_cam_m = getattr(step, "transl_cam_m", None)
            is_metric = getattr(step, "is_metric", None)
            if transl_cam_m is None or is_metric is None:
                raise ValueError(NOT_METRIC)
            joints_cam_m = step.joints_root_m.float() + transl_cam_m[:, None]
            terms.append(over_points(l1(joints_cam_m, target), valid & is_metric[:, None]))
        return torch.stack(terms)


NOT_METRIC = (
    "joints3d_abs scores hands in metres before the camera, and this head does not place them: "
    "task.head.camera=pinhole, or leave joints3d_abs out of loss=[...]"
)


class Joints2D(nn.Module):
    """L1 on projected joints in crop ndc, each weighted by its confidence."""

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] ndc."""
        valid, conf = batch.kp2d_valid, batch.kp2d_conf
        target = blanked(batch.kp2d_crop_ndc, valid)
        steps = out.steps[1:]
        return torch.stack([over_points(l1(s.joints_crop_ndc, target), valid, conf) for s in steps])
