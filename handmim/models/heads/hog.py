"""Oriented gradients told by one vector for the whole view, by points, or by every patch token."""

from torch import Tensor, nn

from handmim.geometry.camera import cell_centres_ndc
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


class PointHogHead(nn.Module):
    """Histograms of a whole view from its pseudo-keypoints, each drawn as a Gaussian where it lies.

    Convolutions look at the drawn maps, so a point tells the contours around its own place: a code
    that hides the pose in coordinates elsewhere has no reader. Drawing landmarks for a decoder is
    known from Jakab et al. (2018, arXiv 1806.07823), whose decoder redraws the picture and sees
    another one for its looks; contours need no looks.

    Args:
        num_keypoints: K.
        cells: s, cells per side.
        bins: orientations.
        fine: drawn pixels per side of a cell.
        sigma_cells: width of a Gaussian in cells.
        hidden_dim: channels.
        num_hidden: 3 x 3 convolutions between cells; each lets a point tell one cell further.
    Raises: ValueError for sizes that draw nothing.
    """

    centres_ndc: Tensor

    def __init__(
        self,
        num_keypoints: int,
        *,
        cells: int,
        bins: int = 9,
        fine: int = 2,
        sigma_cells: float = 0.75,
        hidden_dim: int = 64,
        num_hidden: int = 1,
    ) -> None:
        super().__init__()
        if fine < 1 or sigma_cells <= 0:
            raise ValueError(
                f"fine must be >= 1 and sigma_cells > 0, got {fine}, {sigma_cells} "
                "(task.heads.point_hog)"
            )
        self.num_keypoints, self.bins, self.cells = num_keypoints, bins, cells
        self.sharpness = 0.5 / (2.0 * sigma_cells / cells) ** 2
        centres_ndc = cell_centres_ndc(cells * fine)
        self.register_buffer("centres_ndc", centres_ndc, persistent=False)
        layers: list[nn.Module] = [
            nn.Conv2d(num_keypoints, hidden_dim, fine + 2, stride=fine, padding=1),
            nn.GELU(),
        ]
        for _ in range(num_hidden):
            layers += [nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1), nn.GELU()]
        layers.append(nn.Conv2d(hidden_dim, bins, 1))
        self.net = nn.Sequential(*layers)

    def drawn(self, points_ndc: Tensor) -> Tensor:
        """[V, K, d] to [V, K, s fine, s fine] Gaussians of height 1; depth is not drawn, fp32."""
        gap = points_ndc[..., :2, None].float() - self.centres_ndc  # [V, K, 2, s fine]
        x, y = (-self.sharpness * gap.square()).exp().unbind(dim=2)
        return y[..., :, None] * x[..., None, :]

    def forward(self, points: Tensor) -> Tensor:
        """[..., K * d] in ndc to [..., bins, s, s], fp32."""
        views = points.unflatten(-1, (self.num_keypoints, -1)).flatten(0, -3)
        return self.net(self.drawn(views)).float().unflatten(0, points.shape[:-1])
