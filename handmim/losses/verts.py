"""Vertex loss of the regression."""

import torch
from torch import Tensor, nn

from handmim.losses.reduction import blanked, over_samples
from handmim.types import HandBatch, HandOutputs


class Verts(nn.Module):
    """L1 on root-relative vertices in metres; needs a labelled root.

    Args:
        root_joint: index of the root in the 21 joints.
    """

    def __init__(self, *, root_joint: int) -> None:
        super().__init__()
        self.root_joint = root_joint

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] metres."""
        known = batch.has_verts & batch.joints_valid[:, self.root_joint]
        target = blanked(batch.verts_cam_m - batch.joints_cam_m[:, self.root_joint, None], known)
        errors = [(s.verts_root_m.float() - target).abs().mean(dim=(1, 2)) for s in out.steps[1:]]
        return torch.stack([over_samples(error, known) for error in errors])
