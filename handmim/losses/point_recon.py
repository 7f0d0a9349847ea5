"""Redrawing a small grey picture of the view from the pseudo-keypoints alone.

Ours, not the paper's. A rigid template locked to the hand cannot redraw bent fingers: whatever the
points leave out is lost, so they have to articulate. Relatives are landmark bottlenecks for images
(Jakab et al. 2018, arXiv 1806.07823; Zhang et al. 2018, arXiv 1804.04412).
"""

from torch import Tensor, nn

from handmim.losses.class_recon import grey_thumbnails, thumbnail_loss
from handmim.types import PretrainBatch, PretrainOutputs


class Term(nn.Module):
    """`thumbnail_loss` on `PretrainOutputs.point_thumbnail`.

    Args:
        beta, edge_beta: where smooth L1 turns linear on values and on differences.
    """

    needs = ("point_thumbnail",)

    def __init__(self, *, beta: float = 0.3, edge_beta: float = 0.1) -> None:
        super().__init__()
        self.beta, self.edge_beta = beta, edge_beta

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.point_thumbnail is not None, "point_recon needs the point_thumbnail head"
        target = grey_thumbnails(batch.views, out.point_thumbnail.shape[-1])
        return thumbnail_loss(out.point_thumbnail, target, self.beta, self.edge_beta)
