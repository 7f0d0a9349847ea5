"""Pixel reconstruction heads on patch tokens, with patchify beside them."""

from collections.abc import Sequence

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def patchify(image: Tensor, patch_px: int) -> Tensor:
    """[B, 3, H, W] to [B, N, p*p*3]: patches row by row, inside a patch row, column, then
    channel."""
    b, c, height, width = image.shape
    h, w = height // patch_px, width // patch_px
    x = image.reshape(b, c, h, patch_px, w, patch_px)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, patch_px * patch_px * c)


def unpatchify(patches: Tensor, patch_px: int, grid_hw: tuple[int, int]) -> Tensor:
    """Inverse of `patchify`: [B, N, p*p*3] to [B, 3, H, W]."""
    h, w = grid_hw
    x = patches.reshape(len(patches), h, w, patch_px, patch_px, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, h * patch_px, w * patch_px)


def tap_blocks(tap_layers: Sequence[float], depth: int) -> tuple[int, ...]:
    """Shares of the depth to block numbers from 1 to depth; shares of one block count once."""
    return tuple(dict.fromkeys(max(round(share * depth), 1) for share in tap_layers))


def checked_taps(tap_layers: Sequence[float]) -> tuple[float, ...]:
    """The same numbers, each a share of the backbone's depth.

    Raises: ValueError for none, and for one outside (0, 1].
    """
    taps = tuple(float(share) for share in tap_layers)
    if not taps or not all(0.0 < share <= 1.0 for share in taps):
        raise ValueError(
            f"tap_layers are shares of the depth in (0, 1], got {list(tap_layers)} "
            "(task.heads.pixel.tap_layers)"
        )
    return taps


class PixelHead(nn.Module):
    """LayerNorm and one linear map from a token to its patch's pixels.

    Args:
        dim: width of the tokens.
        patch_px: patch side.
        tap_layers: whose tokens it gets, in shares of the backbone's depth: [1.0] the last block's,
            several their mean.
    """

    def __init__(self, dim: int, patch_px: int, *, tap_layers: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.tap_layers = checked_taps(tap_layers)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, patch_px * patch_px * 3)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, patches: Tensor, wanted: Tensor, is_dropped: Tensor | None = None) -> Tensor:
        """[V, N, D] tokens and [M] places in V * N to [M, p*p*3].

        Raises: ValueError when hidden patches were dropped: each answer is read off its own token.
        """
        if is_dropped is not None:
            raise ValueError(
                "the linear pixel head needs a token at every hidden patch: choose "
                "pixel_head=decoder, or task.mask_mode=replace"
            )
        return self.out(self.norm(patches.flatten(0, 1)[wanted]))


class PixelDecoder(nn.Module):
    """A light transformer over the tokens of all patches, after which pixels are a linear map.

    Patches that were dropped from the encoder come back as its own mask token. The class token
    stays outside: what it carries is told by the other losses.

    Args:
        dim: width of the tokens.
        patch_px: patch side.
        grid_hw: patch grid, of which it knows fixed sine-cosine positions.
        depth, width, num_heads, mlp_ratio: of its transformer; None is as wide as the tokens, and a
            head per 32 channels.
        tap_layers: as in `PixelHead`.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        patch_px: int,
        grid_hw: tuple[int, int],
        *,
        depth: int = 2,
        width: int | None = None,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        tap_layers: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be >= 1, got {depth} (task.heads.pixel.depth)")
        width = dim if width is None else width
        num_heads = max(1, width // 32) if num_heads is None else num_heads
        if width < 8 or width % 4 or num_heads < 1 or width % num_heads:
            raise ValueError(
                f"width must be a multiple of 4 (at least 8) and of num_heads, got {width} and "
                f"{num_heads} (task.heads.pixel)"
            )
        self.tap_layers = checked_taps(tap_layers)
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(
            *(Block(width, num_heads, mlp_ratio, qkv_bias=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, patch_px * patch_px * 3)
        positions = build_sincos2d_pos_embed(list(grid_hw), dim=width)
        self.register_buffer("positions", positions, persistent=False)  # [N, width]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, patches: Tensor, wanted: Tensor, is_dropped: Tensor | None = None) -> Tensor:
        """Tokens to [M, p*p*3].

        Args:
            patches: [V, N, D], or [V, N_visible, D] where hidden ones were dropped.
            wanted: [M] places in V * N.
            is_dropped: [V, N] bool, patches that have no token.
        """
        x = self.embed(patches)
        if is_dropped is not None:
            whole = self.mask_token.to(x.dtype).repeat(*is_dropped.shape, 1)
            whole[~is_dropped] = x.flatten(0, 1)
            x = whole
        x = self.blocks(x + self.positions)
        return self.out(self.norm(x.flatten(0, 1)[wanted]))
