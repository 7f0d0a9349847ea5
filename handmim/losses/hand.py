"""Losses on the regressed hand, one number per refinement step: joints (of a hand model or bare
keypoints), vertices, edges, rotations and shape; and scalars of auxiliary maps."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.geometry.camera import covered_cells, project
from handmim.hand.model import HandLayer
from handmim.losses.composite import (
    LossTerm,
    loss_dataclass,
    over_points,
    over_samples,
    positive,
    zero_invalid,
)
from handmim.types import HandBatch, HandOutputs

NEAREST_M = 0.01  # vertices nearer to the camera's centre, or behind it, are left out


def root_relative(batch: HandBatch, root_joint: int) -> tuple[Tensor, Tensor]:
    """Labelled joints [B, 21, 3] in metres from the root joint, and which of them are known, [B,
    21] bool: none without the root."""
    valid = batch.joints_valid & batch.joints_valid[:, root_joint, None]
    relative = batch.joints_cam_m - batch.joints_cam_m[:, root_joint, None]
    return zero_invalid(relative, valid), valid


def point_error(pred: Tensor, target: Tensor, beta: float = 0.0) -> Tensor:
    """Mean smooth L1 over the coordinates of every point, L1 for beta 0: [B, P, C] twice -> [B, P]
    in the unit of the input, which is that of beta."""
    return F.smooth_l1_loss(pred.float(), target, reduction="none", beta=beta).mean(dim=-1)


@loss_dataclass
class JointLoss(LossTerm):
    """L1 or smooth L1 on root-relative joints; needs a labelled root.

    `unit_m` are metres per unit of the error; 0.1 gives errors the size of those in crop ndc. From
    `beta`, in these units, smooth L1 is linear; 0 is L1.
    """

    root_joint: int
    unit_m: float = positive(1.0)
    beta: float = positive(0.0, or_zero=True)

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        target, valid = root_relative(batch, self.root_joint)
        errors = [
            point_error(step.joints_root_m / self.unit_m, target / self.unit_m, self.beta)
            for step in out.steps[1:]
        ]
        return torch.stack([over_points(error, valid) for error in errors])


@loss_dataclass
class JointLoss2D(LossTerm):
    """L1 or smooth L1 (linear from `beta` ndc) on joints in the crop, each weighted by its
    confidence."""

    beta: float = positive(0.0, or_zero=True)

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        valid, conf = batch.kp2d_valid, batch.kp2d_conf
        target = zero_invalid(batch.kp2d_crop_ndc, valid)
        errors = [point_error(s.joints_crop_ndc, target, self.beta) for s in out.steps[1:]]
        return torch.stack([over_points(error, valid, conf) for error in errors])


class CameraJointLoss(LossTerm):
    """L1 on joints in the camera frame, metres.

    Counts for samples whose intrinsics are known, of an estimate with a metric root translation.
    """

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        terms = []
        valid = batch.joints_valid & batch.has_K[:, None]
        target = zero_invalid(batch.joints_cam_m, valid)
        for step in out.steps[1:]:
            # Bare joints have no such fields.
            transl_cam_m = getattr(step, "transl_cam_m", None)
            is_metric = getattr(step, "is_metric", None)
            if transl_cam_m is None or is_metric is None:
                raise ValueError(
                    "this head gives no root translation: task.head.camera=pinhole, or leave "
                    "joints3d_abs out of loss=[...]"
                )
            joints_cam_m = step.joints_root_m.float() + transl_cam_m[:, None]
            error = point_error(joints_cam_m, target)
            terms.append(over_points(error, valid & is_metric[:, None]))
        return torch.stack(terms)


@loss_dataclass
class VertexLoss(LossTerm):
    """L1 on vertices in metres, relative to the joint `root_joint`, which has to be labelled."""

    root_joint: int

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        known = batch.has_verts & batch.joints_valid[:, self.root_joint]
        root = batch.joints_cam_m[:, self.root_joint, None]
        target = zero_invalid(batch.verts_cam_m - root, known)
        errors = [(s.verts_root_m.float() - target).abs().mean(dim=(1, 2)) for s in out.steps[1:]]
        return torch.stack([over_samples(error, known) for error in errors])


def unique_edges(faces: NDArray[np.integer]) -> NDArray[np.int64]:
    """Every edge of a mesh once: [F, 3] to [E, 2], lower vertex first, sorted."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int64)


class EdgeLoss(LossTerm):
    """L1 on edge lengths of the hand model against the labelled mesh, metres; needs no root."""

    edges: Tensor

    def __init__(self, hand: HandLayer, *, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        edges = torch.from_numpy(unique_edges(hand.faces))
        self.register_buffer("edges", edges, persistent=False)

    def _lengths(self, verts: Tensor) -> Tensor:
        first, second = verts[:, self.edges[:, 0]], verts[:, self.edges[:, 1]]
        return torch.linalg.vector_norm(first - second, dim=-1)  # [B, E]

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        target = self._lengths(zero_invalid(batch.verts_cam_m, batch.has_verts))
        estimates = [self._lengths(s.verts_root_m.float()) for s in out.steps[1:]]
        errors = [(lengths - target).abs().mean(dim=1) for lengths in estimates]
        return torch.stack([over_samples(error, batch.has_verts) for error in errors])


class RotationLoss(LossTerm):
    """Squared Frobenius distance of rotation matrices, mean over the 16 rotations.

    A rotation off by angle a costs 4 (1 - cos a): 2 a^2 for small a.
    """

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        target = zero_invalid(batch.rotmats, batch.has_mano)
        errors = [(s.rotmats - target).square().sum(dim=(-1, -2)) for s in out.steps[1:]]
        return torch.stack([over_samples(error.mean(dim=1), batch.has_mano) for error in errors])


class ShapeLoss(LossTerm):
    """Mean squared error of the shape coefficients."""

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        target = zero_invalid(batch.betas, batch.has_mano)
        errors = [(s.betas - target).square().mean(dim=1) for s in out.steps[1:]]
        return torch.stack([over_samples(error, batch.has_mano) for error in errors])


@loss_dataclass
class PriorLoss(LossTerm):
    """Squared distance of the fingers from the mean hand and of the shape from the average one.

    Counts for samples without MANO parameters only: joints alone do not fix twists and shape.
    """

    betas_weight: float = 0.1

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        mean_fingers = out.steps[0].rotmats[:, 1:].detach()
        terms = []
        for step in out.steps[1:]:
            bend = (step.rotmats[:, 1:] - mean_fingers).square().sum(dim=(-1, -2)).mean(dim=1)
            error = bend + self.betas_weight * step.betas.square().mean(dim=1)
            terms.append(over_samples(error, ~batch.has_mano))
        return torch.stack(terms)


def gaussian_maps(points_ndc: Tensor, size_hw: tuple[int, int], sigma_cells: float) -> Tensor:
    """A Gaussian of height 1 about every point, taken at the centres of h x w cells.

    Finite points [B, P, 2] to [B, P, h, w]; one outside of the crop gives an empty map.
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
    """Cells of the whole hand in the crop, also behind occluders: [B, h, w] bool.

    Args:
        verts_cam_m, K_crop_px, faces: [B, V, 3] camera frame, [B, 3, 3], and [F, 3] int64.
        img_px: side of the crop of K.
        size_hw: (h, w) cells of the mask.
    """
    with torch.autocast(verts_cam_m.device.type, enabled=False):
        is_in_front = verts_cam_m[..., 2] > NEAREST_M
        verts_px = project(verts_cam_m.float(), K_crop_px.float())
        cells = verts_px * (verts_px.new_tensor([size_hw[1], size_hw[0]]) / img_px)
        return covered_cells(zero_invalid(cells, is_in_front), faces, size_hw, is_in_front)


def _required_map(out: Any, name: str) -> Tensor:
    found = getattr(out, name, None)  # heads of bare joints have no such field
    if found is None:
        raise ValueError(
            f"loss {name} requires a map that this head does not predict: task.head.{name}=true "
            f"(heads of the kind of pymaf), or leave {name} out of loss=[...]"
        )
    return torch.as_tensor(found)


@loss_dataclass
class HeatmapLoss(LossTerm):
    """Squared error of one map per joint, a Gaussian of deviation `sigma_cells`, mean over cells,
    weighted by the joint's confidence; a scalar."""

    needs = ("heatmaps",)

    sigma_cells: float = positive(2.0)

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        maps, valid = _required_map(out, "heatmaps"), batch.kp2d_valid
        points = zero_invalid(batch.kp2d_crop_ndc, valid)
        target = gaussian_maps(points, (maps.shape[2], maps.shape[3]), self.sigma_cells)
        error = (maps.float() - target).square().mean(dim=(2, 3))
        return over_points(error, valid, batch.kp2d_conf)


class SilhouetteLoss(LossTerm):
    """Binary cross-entropy of the hand's pixels, mean over the cells of the map, nats; a scalar.

    Counts for samples with a labelled mesh and known intrinsics, from which the target is drawn.
    """

    needs = ("silhouette",)
    faces: Tensor

    def __init__(self, hand: HandLayer, *, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        faces = torch.from_numpy(hand.faces.astype("int64"))
        self.register_buffer("faces", faces, persistent=False)

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        logits = _required_map(out, "silhouette")
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
