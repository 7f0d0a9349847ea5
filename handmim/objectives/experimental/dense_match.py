"""Patches of two views at one position of the source find each other by their tokens.

Ours, not the paper's; not measured in a table. Relatives are dense contrastive methods (O Pinheiro
et al. 2020, VADeR, arXiv 2011.05499; Xie et al. 2021, PixPro, arXiv 2011.10043).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.geometry.camera import cell_centres_ndc
from handmim.geometry.crop import to_source
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext
from handmim.utils.arguments import above
from handmim.utils.ranks import count_over_ranks


def patch_centres(num_patches: int, device: torch.device | None = None) -> Tensor:
    """[N, 2] ndc of the centres of a square grid of patches, row by row."""
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(f"dense_match requires a square grid of patches, got {num_patches}")
    c = cell_centres_ndc(side, device)
    y, x = torch.meshgrid(c, c, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def dense_match(
    embeddings: Tensor,
    positions: Tensor,
    patch_ndc: Tensor,
    *,
    temp: float,
    sigma: float,
    max_distance: float,
    sync: bool = False,
) -> Tensor:
    """Cross-entropy of a patch's partners in another view, found by their embeddings.

    Args:
        embeddings: [B, G, N, E] of unit length.
        positions: [B, G, N, 2] patch centres in the source frame.
        patch_ndc: [B, G] side of a view's patch in the source frame.
        temp: softmax temperature of the similarities.
        sigma: width of the target around the true position, in patches.
        max_distance: patches whose nearest partner is further, in patches, do not count.
        sync: the patches that count are those of all processes.
    Returns: scalar, mean over ordered pairs of different views and patches with a partner; 0 when
        no patch has one.
    """
    num_views = embeddings.shape[1]
    total, count = embeddings.new_zeros((), dtype=torch.float32), 0
    for u in range(num_views):
        for t in range(num_views):
            if t == u:
                continue
            with torch.autocast(embeddings.device.type, enabled=False):
                similarity = embeddings[:, u].float() @ embeddings[:, t].float().transpose(1, 2)
                similarity = similarity / temp
            gap = (
                (positions[:, u, :, None] - positions[:, t, None]).square().sum(dim=-1)
            )  # [B, N, N]
            gap = gap / patch_ndc[:, t, None, None].square()
            target = (-gap / (2 * sigma**2)).softmax(dim=-1)
            counts = gap.amin(dim=-1) <= max_distance**2
            ce = -(target * similarity.log_softmax(dim=-1)).sum(dim=-1)
            total = total + (ce * counts).sum() / count_over_ranks(counts.sum(), sync=sync)
            count += 1
    return total / count


class DenseMatch(Objective):
    """`dense_match` of linear embeddings of the patch tokens.

    Args:
        weight: of the loss.
        temp, sigma, max_distance: as there.
        out_dim: width of the embeddings.
    """

    reads = frozenset({"masked_patches", "visible_patches"})

    def __init__(
        self,
        *,
        weight: float | Schedule = 0.5,
        temp: float = 0.1,
        sigma: float = 0.6,
        max_distance: float = 0.75,
        out_dim: int = 64,
    ) -> None:
        super().__init__(weight)
        above(0.0, temp=temp, sigma=sigma, max_distance=max_distance)
        self.temp, self.sigma, self.max_distance = temp, sigma, max_distance
        self.out_dim = out_dim

    def build(self, setup: Setup) -> None:
        self.project = mlp(setup.dim, 0, self.out_dim, 0)

    def predict(self, ctx: StepContext) -> Tensor:
        """[B, G, N, E] of length 1, fp32."""
        embedded: Tensor = self.project(ctx.student.patches).float()
        return F.normalize(embedded, dim=-1).unflatten(0, ctx.shape)

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        maps, num_patches = ctx.batch.source_from_view, prediction.shape[2]
        centres = patch_centres(num_patches, prediction.device)
        centres = centres.expand(*prediction.shape[:3], 2)
        A = maps.float()
        area = (A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]).abs()
        return dense_match(
            prediction,
            to_source(centres, maps, ctx.batch.displacement_ndc),
            area.sqrt() * (2.0 / num_patches**0.5),
            temp=self.temp,
            sigma=self.sigma,
            max_distance=self.max_distance,
            sync=self.training,
        )
