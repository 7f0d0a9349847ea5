"""Channels of the class token move as the picture moves: linear equivariance without any points.

Pairs of channels are read as vectors of the plane, which the linear part of a view's known map
carries to the source crop, where two views must agree. The idea of latents that follow image
transforms by linear maps is TI-Net's (arXiv 2502.12535, abstract); this formulation is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.losses.keypoints.linear import carried, linear_part
from handmim.types import PretrainBatch, PretrainOutputs
from handmim.utils.ranks import gathered, mean_over_ranks

KINDS = ("cosine", "smooth_l1", "l2")
CONFIG = "configs/loss/latent_equivariance.yaml"


def latent_vectors(cls: Tensor, share: float) -> Tensor:
    """The first channels as vectors of the plane: [..., D] -> [..., P, 2].

    Raises: ValueError when the share holds no pair or D is odd.
    """
    dim = cls.shape[-1]
    num_pairs = int(share * dim) // 2
    if dim % 2 or num_pairs < 1:
        raise ValueError(f"no channel pairs in a share of {share} of {dim} channels ({CONFIG})")
    return cls[..., : 2 * num_pairs].unflatten(-1, (num_pairs, 2))


def variance_hinge(rows: Tensor, min_std: float) -> Tensor:
    """Mean over columns of relu(min_std - std over the batch)^2: [M, E] -> scalar; 0 for M < 2."""
    if len(rows) < 2:
        return rows.sum() * 0.0
    return F.relu(min_std - (rows.var(dim=0) + 1e-8).sqrt()).square().mean()


class Term(nn.Module):
    """Distance between the carried vectors of different views, and a hinge against collapse.

    Args:
        kind: "cosine" (1 - cosine of all vectors of a sample, blind to size) | "smooth_l1" | "l2"
            (both divided by the vectors' detached root mean square, l2 twice).
        with_scale: vectors grow and shrink with the view; the cosine sees no difference.
        share: part of the channels that is carried; the rest may be invariant.
        beta: where smooth L1 turns linear, in root mean squares.
        variance_weight: of the hinge.
        min_std: standard deviation over the batch asked of every carried coordinate.
    Raises: ValueError for a value that is not listed here.
    """

    needs = ("cls",)

    def __init__(
        self,
        *,
        kind: str = "cosine",
        with_scale: bool = False,
        share: float = 1.0,
        beta: float = 0.1,
        variance_weight: float = 1.0,
        min_std: float = 0.5,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r} ({CONFIG})")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {share} ({CONFIG})")
        if beta <= 0:
            raise ValueError(f"beta must be > 0, got {beta} ({CONFIG})")
        self.kind, self.with_scale, self.share, self.beta = kind, with_scale, share, beta
        self.variance_weight, self.min_std = variance_weight, min_std

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.cls is not None, "latent_equivariance needs class tokens"
        with torch.autocast(out.cls.device.type, enabled=False):
            vectors = latent_vectors(out.cls.float(), self.share)
            linear = linear_part(batch.source_from_view, with_scale=self.with_scale)
            in_source = carried(linear, vectors).flatten(-2)  # [B, G, 2P]
            num_views = in_source.shape[1]
            # Cyclic: every unordered pair of views, as the distance is symmetric.
            costs = [
                self._distance(in_source, in_source.roll(-shift, dims=1))
                for shift in range(1, num_views // 2 + 1)
            ]
            rows = in_source.flatten(0, 1)
            hinge = variance_hinge(gathered(rows)[0] if self.training else rows, self.min_std)
            return torch.stack(costs).mean() + self.variance_weight * hinge

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        if self.kind == "cosine":
            return (1.0 - F.cosine_similarity(a, b, dim=-1, eps=1e-6)).mean()
        square = a.detach().square().mean()
        size = ((mean_over_ranks(square) if self.training else square) + 1e-6).sqrt()
        if self.kind == "smooth_l1":
            return F.smooth_l1_loss(a / size, b / size, beta=self.beta)
        return F.mse_loss(a / size, b / size)
