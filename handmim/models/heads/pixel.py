"""Pixel reconstruction head on masked patch tokens, with patchify beside it."""

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


class PixelHead(nn.Module):
    """LayerNorm and one linear map from a token to its patch's pixels.

    Args:
        dim: width of the tokens.
        patch_px: patch side.
    """

    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, patch_px * patch_px * 3)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[M, D] to [M, p*p*3]."""
        return self.out(self.norm(tokens))
