"""Mesh-aligned iterative regression of MANO parameters (PyMAF, Zhang et al. 2021, arXiv
2103.16507).

PyMAF's own options are in configs/head/pymaf_exact.yaml. Always ours are farthest-point vertices
instead of a down-sampling matrix, a log-scale camera, a grid of cell centres, and one
deconvolution fewer: tokens of 16 px patches are as fine as PyMAF's first map."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from handmim.geometry.camera import cell_centres_ndc
from handmim.hand.model import HandLayer
from handmim.hand.skeleton import NUM_JOINTS
from handmim.models.heads.hand_head import HandHead, StateUpdate
from handmim.models.pyramid import Pyramid
from handmim.types import HandState, Tokens
from handmim.utils.arguments import at_least, one_of

CLS_AT = ("none", "first", "all")
POOLS = ("flatten", "max")
ImageFeatures = tuple[list[Tensor], Tensor | None]


def sample_map(feature_map: Tensor, points_ndc: Tensor) -> Tensor:
    """Bilinear samples, zero outside, in fp32: [B, C, h, w] at [B, P, 2] to [B, P, C].

    On a CPU cells are read as rows of C numbers, the memory order of maps and their gradient; after
    `grid_sample` the rest of the backward pass is several times slower."""
    # In bf16 a position would be a twentieth of a fine map's cell off.
    feature_map, points = feature_map.float(), points_ndc.float()
    if feature_map.device.type != "cpu":
        sampled = F.grid_sample(feature_map, points.unsqueeze(2), align_corners=False)
        return sampled.squeeze(-1).transpose(1, 2)  # [B, C, P, 1] before
    b, c, h, w = feature_map.shape
    size = points.new_tensor([w, h])
    position = (points + 1) * (size / 2) - 0.5
    low = position.floor()
    share = position - low
    cells = torch.stack([low, low + 1], dim=-1)  # [B, P, 2 (x, y), 2] around each point
    weight = torch.stack([1 - share, share], dim=-1)
    inside = (cells >= 0) & (cells < size.unsqueeze(-1))
    x, y = torch.where(inside, cells, 0.0).long().unbind(dim=2)
    # A position that is not finite keeps weights that are not, so the fault stays visible.
    wx, wy = torch.where(inside | ~weight.isfinite(), weight, 0.0).unbind(dim=2)
    first = torch.arange(b, device=x.device) * (h * w)
    idx = (y.unsqueeze(-1) * w + x.unsqueeze(-2)).flatten(2) + first[:, None, None]
    weights = (wy.unsqueeze(-1) * wx.unsqueeze(-2)).flatten(2).flatten(0, 1)
    rows = feature_map.permute(0, 2, 3, 1).reshape(b * h * w, c)
    sampled = F.embedding_bag(idx.flatten(0, 1), rows, per_sample_weights=weights, mode="sum")
    return sampled.view(b, points.shape[1], c)


def farthest_points(points: NDArray[np.floating], num: int) -> list[int]:
    """Indices of `num` of [V, 3] points, each as far as possible from those before; 0 is first."""
    if not 1 <= num <= len(points):
        raise ValueError(f"num_points must be in 1..{len(points)}, got {num}")
    chosen, distance = [0], np.full(len(points), np.inf)
    while len(chosen) < num:
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return chosen


class PointMlp(nn.Module):
    """Reduce every sampled feature to a few numbers; each later layer reads the input again. pool:
    "flatten", or "max" over the points (WiLoR, arXiv 2409.12259)."""

    def __init__(self, dims: tuple[int, ...], pool: str = "flatten") -> None:
        super().__init__()
        one_of("pool", pool, POOLS)
        self.pool = pool
        inputs = [dims[0], *(dim + dims[0] for dim in dims[1:-1])]
        self.layers = nn.ModuleList(map(nn.Linear, inputs, dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, C] to [B, P * last], or [B, last]."""
        first, *others = self.layers
        y = first(x)
        for layer in others:
            y = layer(torch.cat([F.leaky_relu(y), x], dim=-1))
        y = F.relu(y)
        return y.amax(dim=1) if self.pool == "max" else y.flatten(1)


class PointAttention(nn.Module):
    """Points attend to each other and the grid (PyMAF-X, Zhang et al. 2023, arXiv 2207.06400)."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * width)
        self.out = nn.Linear(width, dim)

    def forward(self, points: Tensor, grid: Tensor) -> Tensor:
        """[B, P, C] mesh features and [B, Q, C] grid features to [B, P, C]."""
        q, k, v = self.qkv(self.norm(torch.cat([points, grid], dim=1))).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q[:, : points.shape[1]], k, v)
        return points + self.out(mixed)


class PyMafHead(HandHead):
    """Refine MANO parameters by features sampled at the current mesh's image positions, in steps
    with weights of their own and finer maps; configs/head/pymaf.yaml has the options. Of mesh
    vertices the farthest ones are sampled."""

    grid_ndc: Tensor
    vert_idx: Tensor

    def __init__(
        self,
        dim: int,
        hand: HandLayer,
        *,
        camera: str = "weak",
        scale0_per_m: float = 8.0,
        num_steps: int = 3,
        pyramid: str = "light",
        channels: int = 128,
        norm: str = "group",
        taps: tuple[int, ...] = (),
        grid_side: int = 21,
        num_points: int = 195,
        append_joints: bool = True,
        attention: bool = False,
        point_dims: tuple[int, ...] = (128, 64, 5),
        pool: str = "flatten",
        hidden_dim: int = 1024,
        dropout: float = 0.1,
        activation: str = "gelu",
        cls_dim: int = 256,
        cls_at: str = "first",
        standardise_cls: bool = False,
        detach: bool = True,
        heatmaps: bool = False,
        silhouette: bool = False,
    ) -> None:
        at_least(1, num_steps=num_steps)
        one_of("cls_at", cls_at, CLS_AT)
        shared: dict[str, Any] = {"camera": camera, "scale0_per_m": scale0_per_m}
        super().__init__(dim, hand, **shared, standardise_cls=standardise_cls and cls_at != "none")
        self.num_steps, self.append_joints = num_steps, append_joints
        self.detach, self.tapped_blocks = detach, tuple(taps)
        self.cls_steps = {"none": 0, "first": 1, "all": num_steps}[cls_at]  # that read it
        self.steps_train_alone = detach and num_steps > 1
        self.pyramid = Pyramid(pyramid, dim, channels, num_steps, norm, self.tapped_blocks)
        widths = (channels, *point_dims)
        num_mesh = num_points + (NUM_JOINTS if append_joints else 0)
        self.point_mlps = nn.ModuleList(PointMlp(widths, pool) for _ in range(num_steps))
        self.attentions = nn.ModuleList(
            PointAttention(channels) for _ in range(num_steps - 1 if attention else 0)
        )
        self.regressors = nn.ModuleList()
        for step in range(num_steps):
            num = 1 if pool == "max" else num_mesh if step else grid_side**2
            width = num * widths[-1] + (cls_dim if step < self.cls_steps else 0)
            args = (width, self.state_dim, hidden_dim, dropout, activation)
            self.regressors.append(StateUpdate(*args))
        self.cls_proj = nn.Linear(dim, cls_dim) if self.cls_steps else None
        aux = {"heatmaps": heatmaps * NUM_JOINTS, "silhouette": int(silhouette)}
        convs = {name: nn.Conv2d(channels, num, 1) for name, num in aux.items() if num}
        self.aux = nn.ModuleDict(convs)
        self.drawn = frozenset(self.aux)
        side = cell_centres_ndc(grid_side)
        grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
        self.register_buffer("grid_ndc", grid, persistent=False)
        vert_idx = torch.tensor(farthest_points(hand.arrays.v_template, num_points))
        self.register_buffer("vert_idx", vert_idx, persistent=False)

    def _points(self, step: int, hand: HandState) -> Tensor:
        """[B, P, 2] sampled by step `step`, in ndc, detached."""
        if step == 0:
            return self.grid_ndc.expand(len(hand.cam), -1, -1)
        points = hand.verts_crop_ndc[:, self.vert_idx]
        if self.append_joints:
            points = torch.cat([points, hand.joints_crop_ndc], dim=1)
        return points.detach()

    def read(self, tokens: Tokens) -> ImageFeatures:
        """Maps of the patches, finer and finer, and the projected class token."""
        maps = self.pyramid.of_tokens(tokens)
        return maps, self.cls_proj(self.cls_token(tokens)) if self.cls_proj else None

    def updates(
        self, step: int, read: ImageFeatures, state: Tensor, hand: HandState
    ) -> list[Tensor]:
        """[B, S] from features where the current hand lands in the step's map."""
        maps, cls = read
        sampled = sample_map(maps[step], self._points(step, hand))
        if step > 0 and len(self.attentions):
            grid = sample_map(maps[step], self._points(0, hand))
            sampled = self.attentions[step - 1](sampled, grid)
        features = self.point_mlps[step](sampled)
        if cls is not None and step < self.cls_steps:
            features = torch.cat([features, cls], dim=-1)
        return [self.regressors[step](features, state)]

    def drawings(self, read: ImageFeatures) -> dict[str, Tensor]:
        """From the finest map: [B, 21, h, w] and [B, h, w] logits."""
        return {name: conv(read[0][-1]).squeeze(1) for name, conv in self.aux.items()}
