"""Oriented gradients told by one vector for the whole view, or by every patch token for itself."""

from torch import Tensor, nn

from handmim.models.heads.mlp import mlp


class HogHead(nn.Module):
    """Histograms of a whole view from its class token or from its pseudo-keypoints.

    Args:
        dim: width of the vector.
        cells: s, cells per side.
        bins: orientations.
        hidden_dim, num_hidden: MLP sizes.
    """

    def __init__(
        self, dim: int, *, cells: int, bins: int = 9, hidden_dim: int = 256, num_hidden: int = 1
    ) -> None:
        super().__init__()
        self.bins, self.cells = bins, cells
        self.mlp = mlp(dim, hidden_dim, bins * cells * cells, num_hidden)

    def forward(self, vector: Tensor) -> Tensor:
        """[..., D] to [..., bins, s, s], fp32."""
        return self.mlp(vector).float().unflatten(-1, (self.bins, self.cells, self.cells))


class PatchHogHead(nn.Module):
    """Histograms of every patch from its own token.

    Args:
        dim: width of the tokens.
        grid_hw: patches per column and row.
        bins: orientations.
        per_patch: c, cells per side of a patch.
    """

    def __init__(
        self, dim: int, grid_hw: tuple[int, int], *, bins: int = 9, per_patch: int = 1
    ) -> None:
        super().__init__()
        if grid_hw[0] != grid_hw[1]:
            raise ValueError(f"patch_hog wants a square grid of patches, got {grid_hw}")
        self.grid_hw, self.bins, self.per_patch = grid_hw, bins, per_patch
        self.cells = grid_hw[0] * per_patch
        self.project = mlp(dim, 0, bins * per_patch * per_patch, 0)

    def forward(self, patches: Tensor) -> Tensor:
        """[..., N, D] tokens to [..., bins, h c, w c], fp32."""
        (h, w), c = self.grid_hw, self.per_patch
        x = self.project(patches).float().unflatten(-1, (self.bins, c, c))
        x = x.unflatten(-4, (h, w))  # [..., h, w, bins, c, c]
        x = x.movedim(-3, -5).movedim(-2, -3)  # [..., bins, h, c, w, c]
        return x.flatten(-4, -3).flatten(-2, -1)
