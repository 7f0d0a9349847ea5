"""Reading a feature map at places between its cells."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_map(feature_map: Tensor, points_ndc: Tensor) -> Tensor:
    """Bilinear samples, zero outside, in fp32: [B, C, h, w] at [B, P, 2] to [B, P, C].

    On a CPU cells are read as rows of C numbers. Tokens bring maps that lie so in memory, and the
    gradient comes back the same way: `grid_sample` gives it the other way round, in which all that
    follows is several times slower.
    """
    # In bf16 a place would be a twentieth of a fine map's cell off.
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
    """The four cells around each point, as places in a map row by row, and their weights, 0 for
    those outside: [B, P, 2] to [B, P, 4] each."""
    size = points_ndc.new_tensor([w, h])
    place = (points_ndc + 1) * (size / 2) - 0.5
    low = place.floor()
    share = place - low
    cells = torch.stack([low, low + 1], dim=-1)  # [B, P, 2 (x, y), 2]
    weight = torch.stack([1 - share, share], dim=-1)
    inside = (cells >= 0) & (cells < size.unsqueeze(-1))
    x, y = torch.where(inside, cells, 0.0).long().unbind(dim=2)
    # A place that is no number, or infinite, has weights that are none, and stays to be seen.
    weight = torch.where(inside | ~weight.isfinite(), weight, 0.0)
    wx, wy = weight.unbind(dim=2)
    idx = y.unsqueeze(-1) * w + x.unsqueeze(-2)
    return idx.flatten(2), (wy.unsqueeze(-1) * wx.unsqueeze(-2)).flatten(2)
