"""Pictures that a head draws of its feature map, for auxiliary losses only."""

from torch import Tensor, nn

from handmim.hand.skeleton import NUM_JOINTS


class AuxMaps(nn.Module):
    """1x1 convolutions of a feature map to heat maps of the joints and the hand's silhouette.

    Args:
        channels: width of the map.
        heatmaps: whether joints are drawn.
        silhouette: whether the silhouette is.
    """

    def __init__(self, channels: int, *, heatmaps: bool, silhouette: bool) -> None:
        super().__init__()
        self.heatmaps = nn.Conv2d(channels, NUM_JOINTS, 1) if heatmaps else None
        self.silhouette = nn.Conv2d(channels, 1, 1) if silhouette else None

    def forward(self, feature_map: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """[B, C, h, w] to [B, 21, h, w] and [B, h, w] logits, None for what is not drawn."""
        heatmaps = None if self.heatmaps is None else self.heatmaps(feature_map)
        silhouette = None if self.silhouette is None else self.silhouette(feature_map).squeeze(1)
        return heatmaps, silhouette
