"""Losses on the regressed mesh: vertices and edge lengths."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.losses.composite import LossTerm
from handmim.losses.reduction import over_samples, zero_invalid
from handmim.types import HandBatch, HandOutputs


class Triangles(Protocol):
    """The part of a hand model that connects vertices."""

    @property
    def faces(self) -> NDArray[np.int32]:
        """[F, 3] vertex indices."""


def unique_edges(faces: NDArray[np.integer]) -> NDArray[np.int64]:
    """Every edge of a mesh once: [F, 3] to [E, 2], lower vertex first, sorted."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int64)


def edge_lengths(verts: Tensor, edges: Tensor) -> Tensor:
    """[B, V, 3] and [E, 2] to [B, E], in the unit of the vertices."""
    first, second = verts[:, edges[:, 0]], verts[:, edges[:, 1]]
    return torch.linalg.vector_norm(first - second, dim=-1)


class VertexLoss(LossTerm):
    """L1 on root-relative vertices in metres; needs a labelled root.

    Args:
        root_joint: index of the root in the 21 joints.
        weight: of the loss.
    """

    def __init__(self, *, root_joint: int, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.root_joint = root_joint

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] metres."""
        known = batch.has_verts & batch.joints_valid[:, self.root_joint]
        root = batch.joints_cam_m[:, self.root_joint, None]
        target = zero_invalid(batch.verts_cam_m - root, known)
        errors = [(s.verts_root_m.float() - target).abs().mean(dim=(1, 2)) for s in out.steps[1:]]
        return torch.stack([over_samples(error, known) for error in errors])


class EdgeLoss(LossTerm):
    """L1 on edge lengths against the labelled mesh, metres; needs no root.

    Args:
        hand: the hand model whose triangles connect the vertices.
        weight: of the loss.
    """

    edges: Tensor

    def __init__(self, hand: Triangles, *, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        edges = torch.from_numpy(unique_edges(hand.faces))
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """[T] metres."""
        target = edge_lengths(zero_invalid(batch.verts_cam_m, batch.has_verts), self.edges)
        errors = [
            (edge_lengths(s.verts_root_m.float(), self.edges) - target).abs().mean(dim=1)
            for s in out.steps[1:]
        ]
        return torch.stack([over_samples(error, batch.has_verts) for error in errors])
