"""Auxiliary maps of the joints. How errors are averaged: `losses.reduction`."""

import torch
from torch import Tensor, nn

from handmim.losses.reduction import blanked, over_points
from handmim.types import HandBatch, HandOutputs


def gaussian_maps(points_ndc: Tensor, size_hw: tuple[int, int], sigma_cells: float) -> Tensor:
    """A Gaussian of height 1 about every point, taken at the centres of cells; a point outside of
    the crop gives an empty map.

    Args:
        points_ndc: [B, P, 2] finite.
        size_hw: (h, w).
        sigma_cells: its deviation, in cells.
    Returns: [B, P, h, w].
    """
    h, w = size_hw
    cells = points_ndc.new_tensor([w, h])
    x, y = ((points_ndc + 1) * (cells / 2)).unbind(-1)
    across = torch.arange(w, device=points_ndc.device) + 0.5 - x[..., None]  # [B, P, w]
    down = torch.arange(h, device=points_ndc.device) + 0.5 - y[..., None]
    scale = -0.5 / sigma_cells**2
    maps = (scale * down.square()).exp()[..., None] * (scale * across.square()).exp()[..., None, :]
    is_inside = (points_ndc.abs() <= 1).all(dim=-1)
    return maps * is_inside[..., None, None]


class Heatmaps(nn.Module):
    """Squared error of one map per joint, mean over its cells, weighted by the joint's confidence.

    Args:
        sigma_cells: deviation of the joints' Gaussians, in cells of the map.
    """

    needs = ("heatmaps",)

    def __init__(self, *, sigma_cells: float = 2.0) -> None:
        super().__init__()
        if sigma_cells <= 0:
            raise ValueError(
                f"sigma_cells must be > 0, got {sigma_cells} (configs/loss/heatmaps.yaml)"
            )
        self.sigma_cells = sigma_cells

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar, squares of the maps' height.

        Raises: ValueError when the head draws no such maps.
        """
        maps = getattr(out, "heatmaps", None)  # heads of bare joints have no such field
        if maps is None:
            raise ValueError(
                "loss heatmaps wants a map per joint and the head draws none: "
                "task.head.heatmaps=true (heads of the kind of pymaf), or leave heatmaps out of "
                "loss=[...]"
            )
        valid = batch.kp2d_valid
        points = blanked(batch.kp2d_crop_ndc, valid)
        target = gaussian_maps(points, (maps.shape[2], maps.shape[3]), self.sigma_cells)
        error = (maps.float() - target).square().mean(dim=(2, 3))
        return over_points(error, valid, batch.kp2d_conf)
