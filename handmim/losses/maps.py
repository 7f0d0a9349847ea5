"""Losses on auxiliary maps: heat maps of the joints and the silhouette of the hand."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.geometry.camera import covered_cells, project
from handmim.losses.composite import LossTerm
from handmim.losses.mesh import Triangles
from handmim.losses.reduction import over_points, over_samples, zero_invalid
from handmim.types import HandBatch, HandOutputs

NEAREST_M = 0.01  # vertices nearer to the camera's centre, or behind it, are left out


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


@torch.no_grad()
def hand_masks(
    verts_cam_m: Tensor, K_crop_px: Tensor, faces: Tensor, img_px: int, size_hw: tuple[int, int]
) -> Tensor:
    """Pixels of the whole hand in the crop, also behind occluders.

    Args:
        verts_cam_m: [B, V, 3] camera frame.
        K_crop_px: [B, 3, 3].
        faces: [F, 3] int64.
        img_px: side of the crop of K.
        size_hw: (h, w) cells of the mask.
    Returns: [B, h, w] bool.
    """
    with torch.autocast(verts_cam_m.device.type, enabled=False):
        is_in_front = verts_cam_m[..., 2] > NEAREST_M
        verts_px = project(verts_cam_m.float(), K_crop_px.float())
        cells = verts_px * (verts_px.new_tensor([size_hw[1], size_hw[0]]) / img_px)
        return covered_cells(zero_invalid(cells, is_in_front), faces, size_hw, is_in_front)


def required_map(out: Any, name: str) -> Tensor:
    """A map of the head's outputs.

    Raises: ValueError when the head predicts no such map.
    """
    found = getattr(out, name, None)  # heads of bare joints have no such field
    if found is None:
        raise ValueError(
            f"loss {name} requires a map that this head does not predict: task.head.{name}=true "
            f"(heads of the kind of pymaf), or leave {name} out of loss=[...]"
        )
    return torch.as_tensor(found)


class HeatmapLoss(LossTerm):
    """Squared error of one map per joint, mean over its cells, weighted by the joint's confidence.

    Args:
        weight: of the loss.
        sigma_cells: deviation of the joints' Gaussians, in cells of the map.
    """

    needs = ("heatmaps",)

    def __init__(self, *, weight: float | Schedule = 1.0, sigma_cells: float = 2.0) -> None:
        super().__init__(weight)
        if sigma_cells <= 0:
            raise ValueError(f"sigma_cells must be > 0, got {sigma_cells}")
        self.sigma_cells = sigma_cells

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar, squares of the maps' height."""
        maps, valid = required_map(out, "heatmaps"), batch.kp2d_valid
        points = zero_invalid(batch.kp2d_crop_ndc, valid)
        target = gaussian_maps(points, (maps.shape[2], maps.shape[3]), self.sigma_cells)
        error = (maps.float() - target).square().mean(dim=(2, 3))
        return over_points(error, valid, batch.kp2d_conf)


class SilhouetteLoss(LossTerm):
    """Binary cross-entropy of the hand's pixels, mean over the cells of the map.

    Counts for samples with a labelled mesh and known intrinsics, from which the target is drawn.

    Args:
        hand: the hand model whose triangles connect the vertices.
        weight: of the loss.
    """

    needs = ("silhouette",)
    faces: Tensor

    def __init__(self, hand: Triangles, *, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        faces = torch.from_numpy(hand.faces.astype("int64"))
        self.register_buffer("faces", faces, persistent=False)

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar, nats."""
        logits = required_map(out, "silhouette")
        known = batch.has_verts & batch.has_K
        target = hand_masks(
            zero_invalid(batch.verts_cam_m, known),
            zero_invalid(batch.K_crop_px, known),
            self.faces,
            batch.image.shape[-1],
            (logits.shape[1], logits.shape[2]),
        )
        error = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
        return over_samples(error.mean(dim=(1, 2)), known)
