"""Parameter losses of the regression: rotations and shape coefficients."""

import torch
from torch import Tensor, nn

from handmim.losses.reduction import blanked, over_samples
from handmim.types import HandBatch, HandOutputs


class Rotations(nn.Module):
    """Squared Frobenius distance of rotation matrices, mean over the 16 rotations.

    A rotation off by angle a costs 4 (1 - cos a): 2 a^2 for small a.
    """

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] without unit."""
        target = blanked(batch.rotmats, batch.has_mano)
        errors = [(s.rotmats - target).square().sum(dim=(-1, -2)) for s in out.steps[1:]]
        return torch.stack([over_samples(error.mean(dim=1), batch.has_mano) for error in errors])


class Betas(nn.Module):
    """Mean squared error of the shape coefficients."""

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] without unit."""
        target = blanked(batch.betas, batch.has_mano)
        errors = [(s.betas - target).square().mean(dim=1) for s in out.steps[1:]]
        return torch.stack([over_samples(error, batch.has_mano) for error in errors])
