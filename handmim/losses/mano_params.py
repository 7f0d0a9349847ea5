"""Parameter losses of the regression: rotations and shape coefficients."""

import torch
from torch import Tensor, nn

from handmim.contracts import HandBatch, HandOutputs


class Rotations(nn.Module):
    """Squared Frobenius distance of rotation matrices, mean over the 16 rotations.

    A rotation off by angle a costs 4 (1 - cos a): 2 a^2 for small a.
    """

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar."""
        has_mano = batch.has_mano.float()
        steps = out.steps[1:]
        error = torch.stack([(s.rotmats - batch.rotmats).square().sum(dim=(-1, -2)) for s in steps])
        return (error.mean(dim=-1) * has_mano).mean()


class Betas(nn.Module):
    """Mean squared error of the shape coefficients."""

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar."""
        has_mano = batch.has_mano.float()
        steps = out.steps[1:]
        error = torch.stack([(s.betas - batch.betas).square().mean(dim=1) for s in steps])
        return (error * has_mano).mean()
