"""Redrawing a small grey picture of the view from the class token alone.

Ours, not the paper's: reconstruction through the narrow code makes the class token see the fingers,
which alignment of points alone does not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.types import PretrainBatch, PretrainOutputs


def grey_thumbnails(views: Tensor, thumb_px: int) -> Tensor:
    """Area-pooled grey pictures with mean 0 and deviation 1.

    Args:
        views: [B, G, 3, H, W] in [0, 1].
        thumb_px: side t of the result.
    Returns: [B, G, t, t].
    """
    grey = views.float().mean(dim=2)
    small = F.interpolate(grey, size=(thumb_px, thumb_px), mode="area")
    var, mean = torch.var_mean(small, dim=(-2, -1), keepdim=True, correction=0)
    return (small - mean) / (var + 1e-4).sqrt()


def thumbnail_loss(pred: Tensor, target: Tensor, beta: float, edge_beta: float) -> Tensor:
    """Smooth L1 on values plus smooth L1 on horizontal and vertical differences: [..., t, t] ->
    scalar."""
    value = F.smooth_l1_loss(pred, target, beta=beta)
    edge_x = F.smooth_l1_loss(pred.diff(dim=-1), target.diff(dim=-1), beta=edge_beta)
    edge_y = F.smooth_l1_loss(pred.diff(dim=-2), target.diff(dim=-2), beta=edge_beta)
    return value + 0.5 * (edge_x + edge_y)


class Term(nn.Module):
    """`thumbnail_loss` on `PretrainOutputs.thumbnail`.

    Args:
        beta, edge_beta: where smooth L1 turns linear on values and on differences.
    """

    needs = ("thumbnail",)

    def __init__(self, *, beta: float = 0.3, edge_beta: float = 0.1) -> None:
        super().__init__()
        self.beta, self.edge_beta = beta, edge_beta

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.thumbnail is not None, "class_recon needs the thumbnail head"
        target = grey_thumbnails(batch.views, out.thumbnail.shape[-1])
        return thumbnail_loss(out.thumbnail, target, self.beta, self.edge_beta)
