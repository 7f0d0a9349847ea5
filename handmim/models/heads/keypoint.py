"""Pseudo-keypoints and view geometry read off the class token."""

import torch
from torch import Tensor, nn


def _mlp(dim_in: int, hidden_dim: int, dim_out: int, num_hidden: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LayerNorm(dim_in)]
    for i in range(num_hidden):
        layers += [nn.Linear(dim_in if i == 0 else hidden_dim, hidden_dim), nn.GELU()]
    layers.append(nn.Linear(hidden_dim if num_hidden else dim_in, dim_out))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class KeypointHead(nn.Module):
    """K pseudo-keypoints in the view's ndc, bounded to 1.5 so that they may leave the picture a
    little.

    Points start spread out (random output biases), and no BatchNorm is used since masked and whole
    views share the head.

    Args:
        dim: width of the class token.
        num_keypoints: K.
        hidden_dim, num_hidden: MLP sizes.
        bound_ndc: largest coordinate.
        init_spread: output biases are drawn from U(-init_spread, init_spread).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_keypoints: int = 21,
        hidden_dim: int = 1024,
        num_hidden: int = 2,
        bound_ndc: float = 1.5,
        init_spread: float = 0.6,
    ) -> None:
        super().__init__()
        if num_keypoints < 3:
            raise ValueError(
                f"num_keypoints must be >= 3 for a shape, got {num_keypoints} "
                "(configs/loss/keypoint_align.yaml)"
            )
        self.num_keypoints, self.bound_ndc = num_keypoints, bound_ndc
        self.mlp = _mlp(dim, hidden_dim, num_keypoints * 2, num_hidden)
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.uniform_(last.bias, -init_spread, init_spread)

    def forward(self, cls: Tensor) -> Tensor:
        """[..., D] class tokens to [..., K, 2] points in ndc, fp32."""
        raw = self.mlp(cls).float().unflatten(-1, (self.num_keypoints, 2))
        return self.bound_ndc * torch.tanh(raw)


class AffineHead(nn.Module):
    """The known affine map between two views, regressed from both class tokens.

    Args:
        dim: width of the class token.
        hidden_dim, num_hidden: MLP sizes.
    """

    def __init__(self, dim: int, *, hidden_dim: int = 256, num_hidden: int = 1) -> None:
        super().__init__()
        self.mlp = _mlp(2 * dim, hidden_dim, 6, num_hidden)
        self.register_buffer("identity", torch.eye(2, 3), persistent=False)

    def forward(self, cls_a: Tensor, cls_b: Tensor) -> Tensor:
        """[..., D] tokens of views a and b to [..., 2, 3], an estimate of a_from_b in ndc, fp32."""
        delta = self.mlp(torch.cat([cls_a, cls_b], dim=-1)).float().unflatten(-1, (2, 3))
        return self.identity + delta


class ThumbnailHead(nn.Module):
    """A small grey picture of the view, redrawn from the class token alone.

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
        self.mlp = _mlp(dim, hidden_dim, thumb_px * thumb_px, num_hidden)

    def forward(self, cls: Tensor) -> Tensor:
        """[..., D] class tokens to [..., t, t] standardised grey values, fp32."""
        return self.mlp(cls).float().unflatten(-1, (self.thumb_px, self.thumb_px))
