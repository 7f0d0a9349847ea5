"""Oriented gradients as what a token must tell: contours instead of brightness.

Ours, not the paper's. Grey values are ruled by light, skin and background; histograms of oriented
gradients (Dalal & Triggs 2005) normalised among neighbours are ruled by contours, and so by how
fingers bend. As a target of masked patches they are known from MaskFeat (Wei et al. 2022, arXiv
2112.09133); here the class token and the pseudo-keypoints have to tell them, too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.types import PretrainBatch, PretrainOutputs
from handmim.utils.ranks import count_over_ranks

CELL_PX = 8  # pixels per side of a cell when it is looked at
CEILING = 0.5  # of a normalised histogram entry: one strong edge must not hide the others
FLOOR = 0.02  # of the neighbourhood's contrast: flat cells stay flat
SCALE = 0.15  # about the deviation of entries, so that errors are of order one
SOURCES = ("class", "points", "patches")
WHERE = ("all", "masked", "visible")


def oriented_gradients(image: Tensor, cells: int, bins: int = 9) -> Tensor:
    """Histograms of gradient orientation, each divided by the contrast of its neighbourhood.

    Args:
        image: [M, 3, H, W] in [0, 1], resized by area so that a cell is 8 x 8 pixels.
        cells: s, cells per side.
        bins: orientations over half a turn; an edge and its negative are the same.
    Returns: [M, bins, s, s], about 0 .. 3, fp32.
    """
    side = cells * CELL_PX
    x = image.float()
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode="area")
    dx = F.pad(x[..., 2:] - x[..., :-2], (1, 1, 0, 0))
    dy = F.pad(x[..., 2:, :] - x[..., :-2, :], (0, 0, 1, 1))
    strength = dx.square() + dy.square()
    strongest, dx, dy = _where_strongest(strength, dx, dy)  # of the colour that changes most
    magnitude = strongest.sqrt()
    place = torch.atan2(dy, dx).remainder(math.pi) * (bins / math.pi)  # 0 .. bins, cyclic
    centre = torch.arange(bins, device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
    gap = (place - centre).abs_()
    share = torch.minimum(gap, bins - gap).neg_().add_(1).clamp_(min=0)  # linear in the angle
    histogram = F.avg_pool2d(share.mul_(magnitude), CELL_PX)
    energy = F.pad(histogram.square().sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    contrast = F.avg_pool2d(energy, 3, stride=1).sqrt()
    return (histogram / (contrast + FLOOR)).clamp(max=CEILING) / SCALE


def _where_strongest(strength: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
    """[M, C, H, W] at the channel of largest strength, first of equals: [M, 1, H, W] of each.

    Compared channel by channel: argmax over a strided dimension is slow on a CPU.
    """
    best = [x[:, :1] for x in (strength, *fields)]
    for c in range(1, strength.shape[1]):
        is_stronger = strength[:, c : c + 1] > best[0]
        best = [
            torch.where(is_stronger, x[:, c : c + 1], b)
            for x, b in zip((strength, *fields), best, strict=True)
        ]
    return tuple(best)


class Term(nn.Module):
    """Smooth L1 between told and true oriented gradients of each augmented view.

    Args:
        source: who tells: the "class" token, the "points" or the "patches".
        where: which patches count: "all", "masked" or "visible" ones (source "patches" only).
        beta: where smooth L1 turns linear.
    """

    def __init__(self, *, source: str, where: str = "all", beta: float = 1.0) -> None:
        super().__init__()
        if source not in SOURCES:
            raise ValueError(f"source must be one of {SOURCES}, got {source!r} (configs/loss)")
        if where not in WHERE:
            raise ValueError(f"where must be one of {WHERE}, got {where!r} (configs/loss)")
        if where != "all" and source != "patches":
            raise ValueError(f"where={where} is a choice of patches, the source is {source!r}")
        field = {"class": "class_hog", "points": "point_hog", "patches": "patch_hog"}[source]
        self.needs = (field, "hog_targets")
        self.source, self.where, self.beta = source, where, beta

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss; 0 when no patch counts."""
        pred = getattr(out, self.needs[0])
        assert pred is not None, f"{self.needs[0]} needs its head"
        assert out.hog_targets is not None
        bins, cells = pred.shape[2], pred.shape[-1]
        target = out.hog_targets[bins, cells].view_as(pred)
        error = F.smooth_l1_loss(pred.float(), target, beta=self.beta, reduction="none")
        if self.where == "all":
            return error.mean()
        side = round(batch.is_masked.shape[-1] ** 0.5)
        counts = batch.is_masked.unflatten(-1, (side, side))
        counts = counts if self.where == "masked" else ~counts
        per_patch = cells // side
        counts = counts.repeat_interleave(per_patch, -2).repeat_interleave(per_patch, -1)
        counts = counts.unsqueeze(2).expand_as(error)
        return (error * counts).sum() / count_over_ranks(counts.sum(), sync=self.training)
