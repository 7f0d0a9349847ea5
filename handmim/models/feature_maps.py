"""Feature maps of a backbone's patch tokens: pyramids of rising resolution, bilinear samples."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.models.layers import BatchNorm2d
from handmim.utils.arguments import one_of

NORMS = ("group", "batch")


def _norm(kind: str, channels: int) -> nn.Module:
    one_of("norm", kind, NORMS)
    return nn.GroupNorm(1, channels) if kind == "group" else BatchNorm2d(channels)


class Pyramid(nn.Module):
    """Maps [B, C, h 2^l, w 2^l] for l = 0, 1, ..., each by `up` and `refine` from the last."""

    def __init__(self, reduce: nn.Module, up: nn.Module, refine: list[nn.Sequential]) -> None:
        super().__init__()
        self.reduce, self.up, self.refine = reduce, up, nn.ModuleList(refine)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, D, h, w] to one map per level."""
        maps = [self.reduce(x)]
        for refine in self.refine:
            maps.append(refine(self.up(maps[-1])))
        return maps


def light_pyramid(dim: int, channels: int, num_levels: int, norm: str) -> Pyramid:
    """1x1 convolution, then bilinear and separable 3x3; far cheaper than deconvolutions. norm:
    "group" (the same in small batches and in evaluation) or "batch"."""
    reduce = nn.Sequential(nn.Conv2d(dim, channels, 1), _norm(norm, channels), nn.GELU())
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    refine = [
        nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1),
            _norm(norm, channels),
            nn.GELU(),
        )
        for _ in range(num_levels - 1)
    ]
    return Pyramid(reduce, up, refine)


def deconv_pyramid(dim: int, channels: int, num_levels: int, norm: str) -> Pyramid:
    """PyMAF's maps: 4x4 deconvolutions of stride 2 (Zhang et al. 2021, arXiv 2103.16507), after a
    1x1 and a 3x3 convolution of the token map."""

    def unit(conv: nn.Module) -> tuple[nn.Module, ...]:
        return conv, _norm(norm, channels), nn.ReLU()

    first = unit(nn.Conv2d(dim, channels, 1, bias=False))
    second = unit(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
    up = partial(nn.ConvTranspose2d, channels, channels, 4, stride=2, padding=1, bias=False)
    refine = [nn.Sequential(*unit(up())) for _ in range(num_levels - 1)]
    return Pyramid(nn.Sequential(*first, *second), nn.Identity(), refine)


PYRAMIDS = {"light": light_pyramid, "deconv": deconv_pyramid}


def sample_map(feature_map: Tensor, points_ndc: Tensor) -> Tensor:
    """Bilinear samples, zero outside, in fp32: [B, C, h, w] at [B, P, 2] to [B, P, C].

    On a CPU cells are read as rows of C numbers, the memory order of maps and their gradient; after
    `grid_sample` the rest of the backward pass is several times slower."""
    # In bf16 a position would be a twentieth of a fine map's cell off.
    feature_map, points = feature_map.float(), points_ndc.float()
    if feature_map.device.type != "cpu":
        sampled = F.grid_sample(feature_map, points.unsqueeze(2), align_corners=False)
        return sampled.squeeze(-1).transpose(1, 2)  # [B, C, P, 1] before
    b, c, h, w = feature_map.shape
    size = points.new_tensor([w, h])
    position = (points + 1) * (size / 2) - 0.5
    low = position.floor()
    share = position - low
    cells = torch.stack([low, low + 1], dim=-1)  # [B, P, 2 (x, y), 2] around each point
    weight = torch.stack([1 - share, share], dim=-1)
    inside = (cells >= 0) & (cells < size.unsqueeze(-1))
    x, y = torch.where(inside, cells, 0.0).long().unbind(dim=2)
    # A position that is not finite keeps weights that are not, so the fault stays visible.
    wx, wy = torch.where(inside | ~weight.isfinite(), weight, 0.0).unbind(dim=2)
    first = torch.arange(b, device=x.device) * (h * w)
    idx = (y.unsqueeze(-1) * w + x.unsqueeze(-2)).flatten(2) + first[:, None, None]
    sampled = F.embedding_bag(
        idx.flatten(0, 1),
        feature_map.permute(0, 2, 3, 1).reshape(b * h * w, c),
        per_sample_weights=(wy.unsqueeze(-1) * wx.unsqueeze(-2)).flatten(2).flatten(0, 1),
        mode="sum",
    )
    return sampled.view(b, points.shape[1], c)
