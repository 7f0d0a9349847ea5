"""Patches of two views that show the same place must be recognisable by their tokens.

Ours, not the paper's: with the map between views known, so is every patch's partner. Relatives are
dense contrastive methods (O Pinheiro et al. 2020, VADeR, arXiv 2011.05499; Xie et al. 2021,
PixPro, arXiv 2011.10043).
"""

import torch
from torch import Tensor, nn

from handmim.geometry.camera import cell_centres_ndc
from handmim.geometry.warp import to_source
from handmim.types import PretrainBatch, PretrainOutputs
from handmim.utils.ranks import count_over_ranks


def patch_centres(num_patches: int, device: torch.device | None = None) -> Tensor:
    """[N, 2] ndc of the centres of a square grid of patches, row by row."""
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(f"dense_match wants a square grid of patches, got {num_patches}")
    c = cell_centres_ndc(side, device)
    y, x = torch.meshgrid(c, c, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def dense_match(
    embeddings: Tensor,
    places: Tensor,
    patch_ndc: Tensor,
    *,
    temp: float,
    sigma: float,
    max_distance: float,
    sync: bool = False,
) -> Tensor:
    """Cross-entropy between where a patch's partners are and where its embedding finds them.

    Args:
        embeddings: [B, G, N, E] of unit length.
        places: [B, G, N, 2] patch centres in the source frame.
        patch_ndc: [B, G] side of a view's patch in the source frame.
        temp: softmax temperature of the similarities.
        sigma: width of the target around the true place, in patches.
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
            gap = (places[:, u, :, None] - places[:, t, None]).square().sum(dim=-1)  # [B, N, N]
            gap = gap / patch_ndc[:, t, None, None].square()
            target = (-gap / (2 * sigma**2)).softmax(dim=-1)
            counts = gap.amin(dim=-1) <= max_distance**2
            ce = -(target * similarity.log_softmax(dim=-1)).sum(dim=-1)
            total = total + (ce * counts).sum() / count_over_ranks(counts.sum(), sync=sync)
            count += 1
    return total / count


class Term(nn.Module):
    """`dense_match` on `PretrainOutputs.dense`.

    Args:
        temp, sigma, max_distance: as there.
    """

    needs = ("dense",)

    def __init__(
        self, *, temp: float = 0.1, sigma: float = 0.6, max_distance: float = 0.75
    ) -> None:
        super().__init__()
        for name, value in (("temp", temp), ("sigma", sigma), ("max_distance", max_distance)):
            if value <= 0:
                raise ValueError(f"{name} must be > 0, got {value} (configs/loss/dense_match.yaml)")
        self.temp, self.sigma, self.max_distance = temp, sigma, max_distance

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.dense is not None, "dense_match needs the dense head"
        num_patches = out.dense.shape[2]
        centres = patch_centres(num_patches, out.dense.device)
        places = to_source(
            centres.expand(*out.dense.shape[:3], 2), batch.source_from_view, batch.displacement_ndc
        )
        A = batch.source_from_view.float()
        area = (A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]).abs()
        return dense_match(
            out.dense,
            places,
            area.sqrt() * (2.0 / num_patches**0.5),
            temp=self.temp,
            sigma=self.sigma,
            max_distance=self.max_distance,
            sync=self.training,
        )
