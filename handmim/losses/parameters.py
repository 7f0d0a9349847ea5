"""Losses on hand parameters: rotations, shape coefficients, and a prior without labels."""

import torch
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.losses.composite import LossTerm
from handmim.losses.reduction import over_samples, zero_invalid
from handmim.types import HandBatch, HandOutputs


class RotationLoss(LossTerm):
    """Squared Frobenius distance of rotation matrices, mean over the 16 rotations.

    A rotation off by angle a costs 4 (1 - cos a): 2 a^2 for small a.
    """

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] without unit."""
        target = zero_invalid(batch.rotmats, batch.has_mano)
        errors = [(s.rotmats - target).square().sum(dim=(-1, -2)) for s in out.steps[1:]]
        return torch.stack([over_samples(error.mean(dim=1), batch.has_mano) for error in errors])


class ShapeLoss(LossTerm):
    """Mean squared error of the shape coefficients."""

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] without unit."""
        target = zero_invalid(batch.betas, batch.has_mano)
        errors = [(s.betas - target).square().mean(dim=1) for s in out.steps[1:]]
        return torch.stack([over_samples(error, batch.has_mano) for error in errors])


class PriorLoss(LossTerm):
    """Squared distance of the fingers from the mean hand and of the shape from the average one.

    Counts for samples without MANO parameters only: joints alone do not fix twists and shape.

    Args:
        weight: of the loss.
        betas_weight: of the shape coefficients' mean square against the rotations' mean squared
            Frobenius distance.
    """

    def __init__(self, *, weight: float | Schedule = 1.0, betas_weight: float = 0.1) -> None:
        super().__init__(weight)
        self.betas_weight = betas_weight

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] without unit."""
        mean_fingers = out.steps[0].rotmats[:, 1:].detach()
        terms = []
        for step in out.steps[1:]:
            bend = (step.rotmats[:, 1:] - mean_fingers).square().sum(dim=(-1, -2)).mean(dim=1)
            error = bend + self.betas_weight * step.betas.square().mean(dim=1)
            terms.append(over_samples(error, ~batch.has_mano))
        return torch.stack(terms)
