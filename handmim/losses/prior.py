"""What keeps a hand plausible where labels leave it free."""

import torch
from torch import Tensor, nn

from handmim.losses.reduction import over_samples
from handmim.types import HandBatch, HandOutputs


class Prior(nn.Module):
    """Squared distance of the fingers from the mean hand and of the shape from the average one.

    Counts for samples without MANO parameters only: joints alone do not fix twists and shape.

    Args:
        betas_weight: of the shape coefficients' mean square against the rotations' mean squared
            Frobenius distance.
    """

    def __init__(self, *, betas_weight: float = 0.1) -> None:
        super().__init__()
        self.betas_weight = betas_weight

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] without unit."""
        mean_fingers = out.steps[0].rotmats[:, 1:].detach()
        terms = []
        for step in out.steps[1:]:
            turn = (step.rotmats[:, 1:] - mean_fingers).square().sum(dim=(-1, -2)).mean(dim=1)
            error = turn + self.betas_weight * step.betas.square().mean(dim=1)
            terms.append(over_samples(error, ~batch.has_mano))
        return torch.stack(terms)
