"""Channels of the class token move as the image moves: linear equivariance without any points.

Not measured in a table.

Pairs of channels are read as vectors of the plane, which the linear part of a view's known map
carries to the source crop, where two views must agree. The idea of latents that follow image
transforms by linear maps is TI-Net's (arXiv 2502.12535, abstract); this formulation is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.objectives.base import Objective, StepContext
from handmim.objectives.peclr import carried, linear_part
from handmim.utils.arguments import above, one_of
from handmim.utils.ranks import gathered, mean_over_ranks

KINDS = ("cosine", "smooth_l1", "l2")


def latent_vectors(cls: Tensor, share: float) -> Tensor:
    """The first channels as vectors of the plane: [..., D] -> [..., P, 2].

    Raises: ValueError when the share holds no pair or D is odd.
    """
    dim = cls.shape[-1]
    num_pairs = int(share * dim) // 2
    if dim % 2 or num_pairs < 1:
        raise ValueError(f"no channel pairs in a share of {share} of {dim} channels")
    return cls[..., : 2 * num_pairs].unflatten(-1, (num_pairs, 2))


def variance_hinge(rows: Tensor, min_std: float) -> Tensor:
    """Mean over columns of relu(min_std - std over the batch)^2: [M, E] -> scalar; 0 for M < 2."""
    if len(rows) < 2:
        return rows.sum() * 0.0
    return F.relu(min_std - (rows.var(dim=0) + 1e-8).sqrt()).square().mean()


class LatentEquivariance(Objective):
    """Distance between the carried vectors of different views, and a hinge against collapse.

    Args:
        weight: of the loss.
        kind: "cosine" (1 - cosine of all vectors of a sample, blind to size) | "smooth_l1" | "l2"
            (both divided by the vectors' detached root mean square, l2 twice).
        with_scale: vectors grow and shrink with the view; the cosine sees no difference.
        share: part of the channels that is carried; the rest may be invariant.
        beta: where smooth L1 becomes linear, in root mean squares.
        variance_weight: of the hinge.
        min_std: standard deviation over the batch required of every carried coordinate.
    Raises: ValueError for a value that is not listed here.
    """

    def __init__(
        self,
        *,
        weight: float | Schedule = 1.0,
        kind: str = "cosine",
        with_scale: bool = False,
        share: float = 1.0,
        beta: float = 0.1,
        variance_weight: float = 1.0,
        min_std: float = 0.5,
    ) -> None:
        super().__init__(weight)
        one_of("kind", kind, KINDS)
        above(0.0, beta=beta)
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {share}")
        self.kind, self.with_scale, self.share, self.beta = kind, with_scale, share, beta
        self.variance_weight, self.min_std = variance_weight, min_std

    def loss(self, ctx: StepContext, prediction: None) -> Tensor:
        cls = ctx.cls
        with torch.autocast(cls.device.type, enabled=False):
            vectors = latent_vectors(cls.float(), self.share)
            linear = linear_part(ctx.batch.source_from_view, with_scale=self.with_scale)
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
