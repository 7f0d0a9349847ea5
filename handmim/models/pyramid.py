"""From patch tokens to feature maps of rising resolution, cheaply: 1x1, bilinear, separable 3x3."""

from torch import Tensor, nn

from handmim.contracts import Tokens


def _refine(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1),
        nn.GroupNorm(1, channels),
        nn.GELU(),
    )


class LightPyramid(nn.Module):
    """Maps of h, 2h, 4h, ... from one token map; about a tenth of the deconvolution pyramid's cost.

    GroupNorm instead of BatchNorm, so that a small batch and evaluation see the same features.

    Args:
        dim: width of the tokens.
        channels: width of every map.
        num_levels: maps, each twice as fine as the one before.
    """

    def __init__(self, dim: int, *, channels: int = 128, num_levels: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.reduce = nn.Sequential(
            nn.Conv2d(dim, channels, 1), nn.GroupNorm(1, channels), nn.GELU()
        )
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.refine = nn.ModuleList(_refine(channels) for _ in range(num_levels - 1))

    def forward(self, tokens: Tokens) -> list[Tensor]:
        """Tokens to [B, C, h 2^l, w 2^l] for l = 0, 1, ..."""
        h, w = tokens.grid_hw
        x = tokens.patches.transpose(1, 2).unflatten(2, (h, w))
        maps = [self.reduce(x)]
        for refine in self.refine:
            maps.append(refine(self.up(maps[-1])))
        return maps
