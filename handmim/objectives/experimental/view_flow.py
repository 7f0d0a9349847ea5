"""The known smooth warp of a view, regressed from its class token. Not measured in a table.

Ours, not the paper's: the counterpart of `view_affine` for warped views (views.warp_ndc > 0).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext


class ViewFlow(Objective):
    """Smooth L1 between predicted and true control values of the warp.

    Args:
        weight: of the loss.
        warp_grid: control values per side, c.
        beta_ndc: where smooth L1 becomes linear.
    """

    def __init__(
        self, *, weight: float | Schedule = 1.0, warp_grid: int = 4, beta_ndc: float = 0.05
    ) -> None:
        super().__init__(weight)
        self.warp_grid, self.beta_ndc = warp_grid, beta_ndc

    def build(self, setup: Setup) -> None:
        self.mlp = mlp(setup.dim, 256, 2 * self.warp_grid**2, 1)

    def predict(self, ctx: StepContext) -> Tensor:
        """[B, G, 2, c, c] control values in ndc, fp32."""
        control: Tensor = self.mlp(ctx.cls).float()
        return control.unflatten(-1, (2, self.warp_grid, self.warp_grid))

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Scalar. Raises: ValueError when views are not warped."""
        target = ctx.batch.displacement_ndc
        if target is None:
            raise ValueError("view_flow requires warped views: views.warp_ndc > 0")
        return F.smooth_l1_loss(torch.as_tensor(prediction), target, beta=self.beta_ndc)
