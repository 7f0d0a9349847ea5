"""Mesh-aligned iterative regression of MANO parameters (Zhang et al. 2021, PyMAF, arXiv
2103.16507).

The head starts at the mean hand, samples the feature pyramid first on a grid and then where the
current mesh lands, and updates pose, shape and camera. Deviations from PyMAF: a light pyramid, a
GELU between the two linear layers, our own farthest-point vertices instead of a down-sampling
matrix, a log-scale camera, and the class token as an input.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from handmim.contracts import HandOutputs, HandState, Tokens
from handmim.geometry.camera import cell_centres_ndc, project_weak
from handmim.geometry.rotation import matrix_to_rot6d, rot6d_to_matrix
from handmim.hand.model import HandLayer
from handmim.hand.skeleton import ROOT_JOINT
from handmim.models.pyramid import LightPyramid

CLS_AT = ("none", "first", "all")


def farthest_points(points: NDArray[np.floating], num: int) -> NDArray[np.int64]:
    """Indices of `num` points, each as far as possible from those before; starts at point 0.

    Args:
        points: [V, 3].
        num: 1..V.
    """
    if not 1 <= num <= len(points):
        raise ValueError(f"num_points must be in 1..{len(points)}, got {num} (head.num_points)")
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < num:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.asarray(chosen, dtype=np.int64)


class PointMlp(nn.Module):
    """Reduce every sampled feature to a few numbers; the input is shown again to each later layer.

    Args:
        dims: widths, input first.
    """

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        layers = [
            nn.Linear(a + (dims[0] if i else 0), b)
            for i, (a, b) in enumerate(itertools.pairwise(dims))
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, C] to [B, P * last]."""
        y = x
        for i, layer in enumerate(self.layers):
            y = layer(y if i == 0 else torch.cat([y, x], dim=-1))
            y = F.relu(y) if i == len(self.layers) - 1 else F.leaky_relu(y)
        return y.flatten(1)


class Regressor(nn.Module):
    """One refinement: features and current state in, additive updates out; near zero at the start.

    Args:
        feature_dim: width of the features.
        state_dim: numbers of the state.
        hidden_dim: width of both hidden layers.
        dropout: after each of them.
    """

    def __init__(self, feature_dim: int, state_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(feature_dim + state_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.out = nn.Linear(hidden_dim, state_dim)
        nn.init.xavier_uniform_(self.out.weight, gain=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """[B, C] features and [B, S] state to [B, S] deltas."""
        return self.out(self.body(torch.cat([features, state], dim=-1)))


class PyMafHead(nn.Module):
    """Refine MANO parameters by looking at the picture where the current mesh lands.

    State: 16 rotations in 6D, betas, camera (log(s / s0), tx, ty). States are detached between
    steps, so every step learns to improve whatever it is given.

    Args:
        dim: width of the backbone's tokens.
        hand: the hand model that turns parameters into vertices and joints.
        num_steps: T refinements.
        channels: width of the pyramid.
        grid_side: first step samples grid_side^2 points.
        num_points: mesh vertices sampled in later steps, chosen as farthest points of the template.
        append_joints: sample at the 21 projected joints too.
        point_dims: widths of the point MLP after the pyramid's.
        hidden_dim, dropout: regressor.
        cls_dim: width of the class-token feature.
        cls_at: which steps see the class token: "none", "first" or "all".
        standardise_cls: see the class token channel by channel relative to its mean and deviation
            over training pictures (`set_cls_statistics`). Most of a pretrained class token is the
            same for every picture.
        scale0_per_m: s0, ndc units per metre of a typical hand.
    """

    mean_rot6d: Tensor
    mean_cam: Tensor
    cls_mean: Tensor
    cls_std: Tensor
    grid_ndc: Tensor
    vert_idx: Tensor

    def __init__(
        self,
        dim: int,
        hand: HandLayer,
        *,
        num_steps: int = 3,
        channels: int = 128,
        grid_side: int = 21,
        num_points: int = 195,
        append_joints: bool = True,
        point_dims: tuple[int, ...] = (128, 64, 5),
        hidden_dim: int = 1024,
        dropout: float = 0.1,
        cls_dim: int = 256,
        cls_at: str = "first",
        standardise_cls: bool = False,
        scale0_per_m: float = 8.0,
    ) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps must be >= 1, got {num_steps} (configs/head/pymaf.yaml)")
        if cls_at not in CLS_AT:
            raise ValueError(
                f"cls_at must be one of {CLS_AT}, got {cls_at!r} (configs/head/pymaf.yaml)"
            )
        if hand.side != "right":
            raise ValueError(
                "the head regresses right hands (left ones are mirrored before and after), got the "
                f"{hand.side} hand {hand.name} (hand.path)"
            )
        self.hand, self.num_steps, self.scale0_per_m = hand, num_steps, scale0_per_m
        self.append_joints, self.cls_at = append_joints, cls_at
        self.standardise_cls = standardise_cls and cls_at != "none"
        self.num_betas = hand.num_betas
        self.pyramid = LightPyramid(dim, channels=channels, num_levels=num_steps)
        state_dim = 16 * 6 + self.num_betas + 3
        widths = (channels, *point_dims)
        num_mesh = num_points + (21 if append_joints else 0)
        counts = [grid_side**2] + [num_mesh] * (num_steps - 1)
        cls_dims = [cls_dim if self._sees_cls(t) else 0 for t in range(num_steps)]
        self.point_mlps = nn.ModuleList(PointMlp(widths) for _ in range(num_steps))
        self.regressors = nn.ModuleList(
            Regressor(n * widths[-1] + c, state_dim, hidden_dim, dropout)
            for n, c in zip(counts, cls_dims, strict=True)
        )
        self.cls_proj = nn.Linear(dim, cls_dim) if cls_at != "none" else None
        side = cell_centres_ndc(grid_side)
        grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
        self.register_buffer("grid_ndc", grid, persistent=False)
        vert_idx = farthest_points(hand.arrays.v_template, num_points)
        self.register_buffer("vert_idx", torch.from_numpy(vert_idx), persistent=False)
        # The mean hand is learned from the training labels, so it belongs to the weights.
        self.register_buffer("mean_rot6d", matrix_to_rot6d(hand.mean_rotmats.float()))
        self.register_buffer("mean_cam", torch.zeros(3))
        self.register_buffer("cls_mean", torch.zeros(dim))
        self.register_buffer("cls_std", torch.ones(dim))

    def _sees_cls(self, step: int) -> bool:
        return self.cls_at == "all" or (self.cls_at == "first" and step == 0)

    @torch.no_grad()
    def set_mean_hand(self, rotmats: Tensor, cam: Tensor) -> None:
        """Set where refinement starts: [16, 3, 3] rotations and [3] camera; betas start at 0."""
        self.mean_rot6d.copy_(matrix_to_rot6d(rotmats))
        self.mean_cam.copy_(cam)

    @torch.no_grad()
    def set_cls_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set what class tokens are measured against, [D] each; deviations are floored at 1e-2."""
        self.cls_mean.copy_(mean)
        self.cls_std.copy_(std.clamp(min=1e-2))

    def mean_state(self, batch_size: int) -> Tensor:
        """[B, S] the state every refinement starts from."""
        start = torch.cat(
            [self.mean_rot6d.flatten(), self.mean_cam.new_zeros(self.num_betas), self.mean_cam]
        )
        return start.expand(batch_size, -1)

    def decode(self, state: Tensor) -> HandState:
        """[B, S] state to rotations, mesh and projections; fp32 whatever the autocast state."""
        with torch.autocast(state.device.type, enabled=False):
            rot6d, betas, cam = state.float().split([96, self.num_betas, 3], dim=1)
            rotmats = rot6d_to_matrix(rot6d.unflatten(1, (16, 6)))
            mesh = self.hand(rotmats, betas)
            root = mesh.joints_m[:, ROOT_JOINT, None]
            verts, joints = mesh.verts_m - root, mesh.joints_m - root
            return HandState(
                rotmats=rotmats,
                betas=betas,
                cam=cam,
                verts_root_m=verts,
                joints_root_m=joints,
                verts_crop_ndc=project_weak(verts, cam, self.scale0_per_m),
                joints_crop_ndc=project_weak(joints, cam, self.scale0_per_m),
            )

    def _points(self, step: int, hand: HandState) -> Tensor:
        """[B, P, 2] where step `step` looks, in ndc, detached."""
        if step == 0:
            return self.grid_ndc.expand(len(hand.cam), -1, -1)
        points = hand.verts_crop_ndc[:, self.vert_idx]
        if self.append_joints:
            points = torch.cat([points, hand.joints_crop_ndc], dim=1)
        return points.detach()

    def forward(self, tokens: Tokens) -> HandOutputs:
        """Tokens of one batch to the mean hand and T refinements of it."""
        maps = self.pyramid(tokens)
        cls = tokens.cls
        if self.standardise_cls:
            cls = (cls - self.cls_mean) / self.cls_std
        state = self.mean_state(len(tokens.cls))
        steps = [self.decode(state)]
        for t, (point_mlp, regressor) in enumerate(
            zip(self.point_mlps, self.regressors, strict=True)
        ):
            points = self._points(t, steps[-1]).to(maps[t].dtype)
            sampled = F.grid_sample(
                maps[t], points.unsqueeze(2), align_corners=False
            )  # [B, C, P, 1]
            features = point_mlp(sampled.squeeze(-1).transpose(1, 2))
            if self.cls_proj is not None and self._sees_cls(t):
                features = torch.cat([features, self.cls_proj(cls)], dim=-1)
            state = state.detach() + regressor(features, state.detach())
            steps.append(self.decode(state))
        return HandOutputs(steps=tuple(steps))
