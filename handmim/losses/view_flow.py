"""The known smooth warp of a view, regressed from its class token.

Ours, not the paper's: what `view_affine` is for the affine part of a view's geometry. The warp
deforms whatever is in the picture, so telling it asks for knowing how things usually look.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from handmim.types import PretrainBatch, PretrainOutputs


class Term(nn.Module):
    """Smooth L1 between predicted and true control values of the warp.

    Args:
        beta_ndc: where smooth L1 turns linear.
    """

    needs = ("pred_displacement",)

    def __init__(self, *, beta_ndc: float = 0.05) -> None:
        super().__init__()
        self.beta_ndc = beta_ndc

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss.

        Raises: ValueError when views are not warped.
        """
        assert out.pred_displacement is not None, "view_flow needs the displacement head"
        if batch.displacement_ndc is None:
            raise ValueError("view_flow has nothing to tell: views are not warped (views.warp_ndc)")
        return F.smooth_l1_loss(
            out.pred_displacement.float(), batch.displacement_ndc, beta=self.beta_ndc
        )
