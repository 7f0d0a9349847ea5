"""What tests of regression heads share: tokens of a small backbone, a small PyMAF."""

import torch

from handmim.types import Tokens

DIM = 12
SMALL_PYMAF = {
    "channels": 8,
    "grid_side": 3,
    "num_points": 11,
    "point_dims": (6, 4),
    "hidden_dim": 16,
    "dropout": 0.0,
    "cls_dim": 8,
}


def tokens(b: int = 2, grid: tuple[int, int] = (4, 4), seed: int = 0) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    cls = torch.randn(b, DIM, generator=g)
    return Tokens(cls, torch.randn(b, grid[0] * grid[1], DIM, generator=g), grid)
