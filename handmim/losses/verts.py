"""Vertex loss of the regression."""

import torch
from torch import Tensor, nn

from handmim.contracts import HandBatch, HandOutputs


class Verts(nn.Module):
    """L1 on root-relative vertices in metres; same reduction as the joint losses.

    Args:
        root_joint: index of the root in the 21 joints.
    """

    def __init__(self, *, root_joint: int) -> None:
        super().__init__()
        self.root_joint = root_joint

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar, metres."""
        target = batch.verts_cam_m - batch.joints_cam_m[:, self.root_joint, None]
        counts = (batch.has_verts & batch.joints_valid[:, self.root_joint]).float()
        steps = out.steps[1:]
        error = torch.stack(
            [(s.verts_root_m.float() - target).abs().mean(dim=(1, 2)) for s in steps]
        )
        return (error * counts).mean()
