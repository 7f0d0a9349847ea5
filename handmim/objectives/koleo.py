"""Spread of class tokens: the entropy of their directions, estimated by nearest neighbours.

Kozachenko & Leonenko 1987; as a regulariser Sablayrolles et al. 2019 (arXiv 1806.03198) and DINOv2
(Oquab et al. 2023, arXiv 2304.07193).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.objectives.base import Objective, StepContext
from handmim.utils.ranks import gathered


def koleo(tokens: Tensor, eps: float = 1e-8, *, sync: bool = False) -> Tensor:
    """Minus the mean log distance to the nearest neighbour, directions alone.

    Args:
        tokens: [n, D].
        eps: added to distances.
        sync: neighbours are sought among the tokens of all processes, with their gradients.
    Returns: scalar, fp32 even under autocast; 0 with its graph intact for a single token.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        x = F.normalize(tokens.float(), dim=-1)
        others, first = gathered(x) if sync else (x, 0)
        if len(others) < 2:
            return 0.0 * x.sum()
        with torch.no_grad():
            cosine = x @ others.T
            cosine.diagonal(first).fill_(-torch.inf)
            nearest = cosine.argmax(dim=1)
        return -((x - others[nearest]).norm(dim=-1) + eps).log().mean()


class Koleo(Objective):
    """`koleo` of the student's class tokens, summed over views as in DINOv2: two views of one crop
    are no neighbours."""

    def loss(self, ctx: StepContext, prediction: None) -> Tensor:
        views = ctx.cls.unbind(dim=1)
        return torch.stack([koleo(view, sync=self.training) for view in views]).sum()
