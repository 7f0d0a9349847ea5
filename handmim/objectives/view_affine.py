"""Relative view geometry: the known affine map between two views, regressed from both class tokens.

Ours, not the paper's: an anchor for the class token that no constant can satisfy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.geometry.crop import compose, invert
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext


def relative_affine(source_from_view: Tensor) -> Tensor:
    """Map of the next view's ndc to this view's ndc, cyclic: [B, G, 2, 3] -> [B, G, 2, 3]."""
    return compose(invert(source_from_view), source_from_view.roll(-1, dims=1))


class AffineHead(nn.Module):
    """An affine map as the identity and an MLP's estimate of the difference.

    Args:
        dim: width of the class token.
        hidden_dim, num_hidden: MLP sizes.
    """

    def __init__(self, dim: int, *, hidden_dim: int = 256, num_hidden: int = 1) -> None:
        super().__init__()
        self.mlp = mlp(2 * dim, hidden_dim, 6, num_hidden)
        self.register_buffer("identity", torch.eye(2, 3), persistent=False)

    def forward(self, cls_a: Tensor, cls_b: Tensor) -> Tensor:
        """[..., D] tokens of views a and b to [..., 2, 3], an estimate of a_from_b in ndc, fp32."""
        delta = self.mlp(torch.cat([cls_a, cls_b], dim=-1)).float().unflatten(-1, (2, 3))
        return self.identity + delta


class ViewAffine(Objective):
    """Smooth L1 between predicted and true relative maps, mean over the six numbers.

    Args:
        weight: of the loss.
        beta: where smooth L1 becomes linear (ndc and its ratios).
        hidden_dim: of the `AffineHead`.
    """

    def __init__(
        self, *, weight: float | Schedule = 1.0, beta: float = 0.1, hidden_dim: int = 256
    ) -> None:
        super().__init__(weight)
        self.beta, self.hidden_dim = beta, hidden_dim

    def build(self, setup: Setup) -> None:
        self.head = AffineHead(setup.dim, hidden_dim=self.hidden_dim)

    def predict(self, ctx: StepContext) -> Tensor:
        return torch.as_tensor(self.head(ctx.cls, ctx.cls.roll(-1, dims=1)))

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        target = relative_affine(ctx.batch.source_from_view)
        return F.smooth_l1_loss(prediction, target, beta=self.beta)
