"""Joint losses of the regression: 3D relative to the root joint, and 2D in the crop.

Reduction everywhere in the regression losses: mean over what is labelled in a sample, then mean
over all samples of the batch, unlabelled ones counting 0. So a sample's gradient does not depend on
its neighbours, and a mixed batch gives the mean of its parts. Over refinement steps: mean, without
the mean hand the head starts from.
"""

import torch
from torch import Tensor, nn

from handmim.contracts import HandBatch, HandOutputs


def masked_l1(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute coordinate error over the labelled points of a sample, then over the batch.

    Args:
        pred, target: [B, P, C], any unit.
        valid: [B, P] bool.
    Returns: scalar in the unit of the input.
    """
    error = (pred.float() - target).abs().mean(dim=-1) * valid
    return (error.sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()


class Joints3D(nn.Module):
    """L1 on root-relative joints in metres; needs a labelled root.

    Args:
        root_joint: index of the root in the 21 joints.
    """

    def __init__(self, *, root_joint: int) -> None:
        super().__init__()
        self.root_joint = root_joint

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar, metres."""
        root = batch.joints_cam_m[:, self.root_joint, None]
        target = batch.joints_cam_m - root
        valid = batch.joints_valid & batch.joints_valid[:, self.root_joint, None]
        steps = out.steps[1:]
        return torch.stack([masked_l1(s.joints_root_m, target, valid) for s in steps]).mean()


class Joints2D(nn.Module):
    """L1 on projected joints in crop ndc."""

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar, ndc."""
        steps = out.steps[1:]
        terms = [masked_l1(s.joints_crop_ndc, batch.kp2d_crop_ndc, batch.kp2d_valid) for s in steps]
        return torch.stack(terms).mean()
