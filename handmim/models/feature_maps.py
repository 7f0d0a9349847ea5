"""Feature maps of a backbone's patch tokens: pyramids of rising resolution, bilinear samples, and
auxiliary drawings."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.hand.skeleton import NUM_JOINTS
from handmim.models.layers import BatchNorm2d
from handmim.utils.arguments import one_of

NORMS = ("group", "batch")


def _norm(kind: str, channels: int) -> nn.Module:
    one_of("norm", kind, NORMS)
    return nn.GroupNorm(1, channels) if kind == "group" else BatchNorm2d(channels)


class LightPyramid(nn.Module):
    """Maps of h, 2h, 4h, ...: 1x1 convolution, then bilinear and separable 3x3; far cheaper than
    deconvolutions. norm: "group" (the same in small batches and in evaluation) or "batch"."""

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
    1x1 and a 3x3 convolution of the token map."""

    def __init__(
        self, dim: int, *, channels: int = 256, num_levels: int = 3, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reduce = nn.Sequential(
            *self._unit(nn.Conv2d(dim, channels, 1, bias=False), norm),
            *self._unit(nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm),
        )
        up = partial(nn.ConvTranspose2d, channels, channels, 4, stride=2, padding=1, bias=False)
        self.refine = nn.ModuleList(
            nn.Sequential(*self._unit(up(), norm)) for _ in range(num_levels - 1)
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


def sample_map(feature_map: Tensor, points_ndc: Tensor) -> Tensor:
    """Bilinear samples, zero outside, in fp32: [B, C, h, w] at [B, P, 2] to [B, P, C].

    On a CPU cells are read as rows of C numbers: maps of tokens have this memory order, and so has
    the gradient. After `grid_sample`, whose gradient has the other order, the rest of the backward
    pass is several times slower.
    """
    # In bf16 a position would be a twentieth of a fine map's cell off.
    feature_map, points = feature_map.float(), points_ndc.float()
    if feature_map.device.type != "cpu":
        sampled = F.grid_sample(feature_map, points.unsqueeze(2), align_corners=False)
        return sampled.squeeze(-1).transpose(1, 2)  # [B, C, P, 1] before
    b, c, h, w = feature_map.shape
    idx, weight = _corners(points, h, w)
    first = torch.arange(b, device=idx.device) * (h * w)
    cells = feature_map.permute(0, 2, 3, 1).reshape(b * h * w, c)
    sampled = F.embedding_bag(
        (idx + first[:, None, None]).flatten(0, 1),
        cells,
        per_sample_weights=weight.flatten(0, 1),
        mode="sum",
    )
    return sampled.view(b, points.shape[1], c)


def _corners(points_ndc: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """[B, P, 4] indices, row by row, of the cells around each point, and weights, 0 outside."""
    size = points_ndc.new_tensor([w, h])
    position = (points_ndc + 1) * (size / 2) - 0.5
    low = position.floor()
    share = position - low
    cells = torch.stack([low, low + 1], dim=-1)  # [B, P, 2 (x, y), 2]
    weight = torch.stack([1 - share, share], dim=-1)
    inside = (cells >= 0) & (cells < size.unsqueeze(-1))
    x, y = torch.where(inside, cells, 0.0).long().unbind(dim=2)
    # A position that is not finite keeps weights that are not, so the fault stays visible.
    weight = torch.where(inside | ~weight.isfinite(), weight, 0.0)
    wx, wy = weight.unbind(dim=2)
    idx = y.unsqueeze(-1) * w + x.unsqueeze(-2)
    return idx.flatten(2), (wy.unsqueeze(-1) * wx.unsqueeze(-2)).flatten(2)


class AuxMaps(nn.Module):
    """Auxiliary 1x1 convolutions of a feature map: joint heat maps and the hand's silhouette."""

    def __init__(self, channels: int, *, heatmaps: bool, silhouette: bool) -> None:
        super().__init__()
        self.heatmaps = nn.Conv2d(channels, NUM_JOINTS, 1) if heatmaps else None
        self.silhouette = nn.Conv2d(channels, 1, 1) if silhouette else None

    def forward(self, feature_map: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """[B, C, h, w] to [B, 21, h, w] and [B, h, w] logits, None for what is not drawn."""
        heatmaps = None if self.heatmaps is None else self.heatmaps(feature_map)
        silhouette = None if self.silhouette is None else self.silhouette(feature_map).squeeze(1)
        return heatmaps, silhouette
