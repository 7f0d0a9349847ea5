"""From patch tokens to feature maps of rising resolution."""

from collections.abc import Callable

from torch import Tensor, nn

from handmim.models.batch_norm import BatchNorm2d

NORMS = ("group", "batch")


def _norm(kind: str, channels: int) -> nn.Module:
    if kind not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {kind!r} (head.norm)")
    return nn.GroupNorm(1, channels) if kind == "group" else BatchNorm2d(channels)


class LightPyramid(nn.Module):
    """Maps of h, 2h, 4h, ...: 1x1 convolution, then bilinear and separable 3x3; far cheaper than
    deconvolutions.

    Args:
        dim: width of the token map.
        channels: width of every map.
        num_levels: maps, each twice as fine as the one before.
        norm: "group" (a small batch and evaluation see the same features) or "batch".
    """

    def __init__(
        self, dim: int, *, channels: int = 128, num_levels: int = 3, norm: str = "group"
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reduce = nn.Sequential(nn.Conv2d(dim, channels, 1), _norm(norm, channels), nn.GELU())
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1),
                _norm(norm, channels),
                nn.GELU(),
            )
            for _ in range(num_levels - 1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, D, h, w] to [B, C, h 2^l, w 2^l] for l = 0, 1, ..."""
        maps = [self.reduce(x)]
        for refine in self.refine:
            maps.append(refine(self.up(maps[-1])))
        return maps


class DeconvPyramid(nn.Module):
    """PyMAF's maps: 4x4 deconvolutions of stride 2 (Zhang et al. 2021, arXiv 2103.16507), after a
    1x1 and a 3x3 convolution of the token map.

    Args:
        dim: width of the token map.
        channels: width of every map, 256 in PyMAF.
        num_levels: maps, each twice as fine as the one before.
        norm: "batch" as in PyMAF, or "group".
    """

    def __init__(
        self, dim: int, *, channels: int = 256, num_levels: int = 3, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reduce = nn.Sequential(
            *self._unit(nn.Conv2d(dim, channels, 1, bias=False), norm),
            *self._unit(nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm),
        )
        self.refine = nn.ModuleList(
            nn.Sequential(
                *self._unit(
                    nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False), norm
                )
            )
            for _ in range(num_levels - 1)
        )

    def _unit(self, conv: nn.Module, norm: str) -> tuple[nn.Module, ...]:
        return conv, _norm(norm, self.channels), nn.ReLU()

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, D, h, w] to [B, C, h 2^l, w 2^l] for l = 0, 1, ..."""
        maps = [self.reduce(x)]
        for refine in self.refine:
            maps.append(refine(maps[-1]))
        return maps


PYRAMIDS: dict[str, Callable[..., LightPyramid | DeconvPyramid]] = {
    "light": LightPyramid,
    "deconv": DeconvPyramid,
}
