"""Relative view geometry: the known affine map between two views, regressed from both class tokens.

Ours, not the paper's: an anchor for the class token that no constant can satisfy.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from handmim.geometry.crop import compose, invert
from handmim.types import PretrainBatch, PretrainOutputs


def relative_affine(source_from_view: Tensor) -> Tensor:
    """Map of the next view's ndc to this view's ndc, cyclic: [B, G, 2, 3] -> [B, G, 2, 3]."""
    return compose(invert(source_from_view), source_from_view.roll(-1, dims=1))


class Term(nn.Module):
    """Smooth L1 between predicted and true relative maps, mean over the six numbers.

    Args:
        beta: where smooth L1 turns linear (ndc and its ratios).
    """

    needs = ("pred_affine",)

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.pred_affine is not None, "view_affine needs the affine head"
        truth = relative_affine(batch.source_from_view)
        return F.smooth_l1_loss(out.pred_affine, truth, beta=self.beta)
