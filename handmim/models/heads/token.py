"""What is read off single tokens besides points: view geometry, a small picture, an embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.models.heads.mlp import mlp


class AffineHead(nn.Module):
    """The known affine map between two views, regressed from both class tokens.

    Args:
        dim: width of the class token.
        hidden_dim, num_hidden: MLP sizes.
    """

    def __init__(self, dim: int, *, hidden_dim: int = 256, num_hidden: int = 1) -> None:
        super().__init__()
        self.mlp = mlp(2 * dim, hidden_dim, 6, num_hidden)
        self.register_buffer("identity", torch.eye(2, 3), persistent=False)

    def forward(self, cls_a: Tensor, cls_b: Tensor) -> Tensor:
        """[..., D] tokens of views a and b to [..., 2, 3], an estimate of a_from_b in ndc, fp32."""
        delta = self.mlp(torch.cat([cls_a, cls_b], dim=-1)).float().unflatten(-1, (2, 3))
        return self.identity + delta


class DisplacementHead(nn.Module):
    """The known smooth warp of a view, regressed from its class token.

    Args:
        dim: width of the class token.
        warp_grid: control values per side, c.
        hidden_dim, num_hidden: MLP sizes.
    """

    def __init__(
        self, dim: int, *, warp_grid: int, hidden_dim: int = 256, num_hidden: int = 1
    ) -> None:
        super().__init__()
        self.warp_grid = warp_grid
        self.mlp = mlp(dim, hidden_dim, 2 * warp_grid * warp_grid, num_hidden)

    def forward(self, cls: Tensor) -> Tensor:
        """[..., D] class tokens to [..., 2, c, c] control values in ndc, fp32."""
        return self.mlp(cls).float().unflatten(-1, (2, self.warp_grid, self.warp_grid))


class ThumbnailHead(nn.Module):
    """A small grey picture of the view, redrawn from the class token (or any vector) alone.

    Args:
        dim: width of the class token.
        thumb_px: side of the picture.
        hidden_dim, num_hidden: MLP sizes.
    """

    def __init__(
        self, dim: int, *, thumb_px: int = 24, hidden_dim: int = 256, num_hidden: int = 1
    ) -> None:
        super().__init__()
        self.thumb_px = thumb_px
        self.mlp = mlp(dim, hidden_dim, thumb_px * thumb_px, num_hidden)

    def forward(self, cls: Tensor) -> Tensor:
        """[..., D] class tokens to [..., t, t] standardised grey values, fp32."""
        return self.mlp(cls).float().unflatten(-1, (self.thumb_px, self.thumb_px))


class DenseHead(nn.Module):
    """Embeddings of tokens on the unit sphere.

    Args:
        dim: width of the tokens.
        out_dim: E.
    """

    def __init__(self, dim: int, *, out_dim: int = 64) -> None:
        super().__init__()
        self.project = mlp(dim, 0, out_dim, 0)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] tokens to [..., E] of length 1, fp32."""
        return F.normalize(self.project(tokens).float(), dim=-1)
