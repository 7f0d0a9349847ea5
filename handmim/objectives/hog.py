"""HOG targets: class token, pseudo-keypoints and patches predict oriented gradients of their view.

Ours, but for masked patches (MaskFeat, Wei et al. 2022, arXiv 2112.09133). Normalised histograms
of oriented gradients (Dalal & Triggs 2005) depend on edges rather than on light and skin.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.geometry.camera import cell_centres_ndc
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext
from handmim.objectives.point_sets import points_of_next_view
from handmim.utils.arguments import one_of
from handmim.utils.ranks import count_over_ranks

CELL_PX = 8  # pixels per side of a cell for gradients
MAX_ENTRY = 0.5  # of a normalised histogram: one strong edge must not dominate the others
FLOOR = 0.02  # of the neighbourhood's contrast: flat cells stay flat
SCALE = 0.15  # about the deviation of entries, so that errors are of order one
POINTS_FROM = ("own", "other")
BINS = 9  # orientations over half a circle; an edge and its negative are the same
FINE = 2  # drawn pixels per side of a cell
SIGMA_CELLS = 0.75  # width of a drawn Gaussian


def oriented_gradients(image: Tensor, cells: int) -> Tensor:
    """Histograms of gradient orientation, each divided by the contrast of its neighbourhood.

    [M, 3, H, W] in [0, 1], resized by area to `CELL_PX` per cell, to [M, bins, s, s], about 0 .. 3,
    fp32, of s cells per side.
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
    position = torch.atan2(dy, dx).remainder(math.pi) * (BINS / math.pi)  # 0 .. bins, cyclic
    centre = torch.arange(BINS, device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
    gap = (position - centre).abs_()
    share = torch.minimum(gap, BINS - gap).neg_().add_(1).clamp_(min=0)  # linear in the angle
    histogram = F.avg_pool2d(share.mul_(magnitude), CELL_PX)
    energy = F.pad(histogram.square().sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    contrast = F.avg_pool2d(energy, 3, stride=1).sqrt()
    return (histogram / (contrast + FLOOR)).clamp(max=MAX_ENTRY) / SCALE


def _where_strongest(*fields: Tensor) -> list[Tensor]:
    """[M, C, H, W] at the channel where the first field is largest: [M, 1, H, W] of each.

    Compared channel by channel: argmax over a strided dimension is slow on a CPU.
    """
    best = [x[:, :1] for x in fields]
    for c in range(1, fields[0].shape[1]):
        other = [x[:, c : c + 1] for x in fields]
        is_stronger = other[0] > best[0]
        best = [torch.where(is_stronger, a, b) for a, b in zip(other, best, strict=True)]
    return best


class HogHead(nn.Module):
    """Histograms of a whole view of s x s cells from its class token or its pseudo-keypoints."""

    def __init__(self, dim: int, *, cells: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.cells = cells
        self.mlp = mlp(dim, hidden_dim, BINS * cells * cells, 1)

    def forward(self, vector: Tensor) -> Tensor:
        """[..., D] to [..., bins, s, s], fp32."""
        return self.mlp(vector).float().unflatten(-1, (BINS, self.cells, self.cells))


class PatchHogHead(nn.Module):
    """Histograms of every patch, of c x c cells, from its own token."""

    def __init__(self, dim: int, grid_hw: tuple[int, int], *, per_patch: int = 1) -> None:
        super().__init__()
        if grid_hw[0] != grid_hw[1]:
            raise ValueError(f"patch_hog requires a square grid of patches, got {grid_hw}")
        self.side, self.per_patch = grid_hw[0], per_patch
        self.project = mlp(dim, 0, BINS * per_patch * per_patch, 0)

    def forward(self, patches: Tensor) -> Tensor:
        """[..., N, D] tokens to [..., bins, h c, w c], fp32."""
        side, c = self.side, self.per_patch
        x = self.project(patches).float().unflatten(-1, (BINS, c, c))
        x = x.unflatten(-4, (side, side))  # [..., h, w, bins, c, c]
        x = x.movedim(-3, -5).movedim(-2, -3)  # [..., bins, h, c, w, c]
        return x.flatten(-4, -3).flatten(-2, -1)


class PointHogHead(nn.Module):
    """Histograms of a whole view from its K pseudo-keypoints, each drawn as a Gaussian.

    Convolutions read the drawn maps, so a point predicts the gradients around its own position.
    Drawing landmarks for a decoder is known from Jakab et al. (2018, arXiv 1806.07823).
    """

    centres_ndc: Tensor

    def __init__(self, num_keypoints: int, *, cells: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.sharpness = 0.5 / (2.0 * SIGMA_CELLS / cells) ** 2
        self.register_buffer("centres_ndc", cell_centres_ndc(cells * FINE), persistent=False)
        self.net = nn.Sequential(
            nn.Conv2d(num_keypoints, hidden_dim, FINE + 2, stride=FINE, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden_dim, BINS, 1),
        )

    def drawn(self, points_ndc: Tensor) -> Tensor:
        """[V, K, d] to [V, K, s fine, s fine] Gaussians of height 1; depth is not drawn, fp32."""
        gap = points_ndc[..., :2, None].float() - self.centres_ndc  # [V, K, 2, s fine]
        x, y = (-self.sharpness * gap.square()).exp().unbind(dim=2)
        return y[..., :, None] * x[..., None, :]

    def forward(self, points: Tensor) -> Tensor:
        """[..., K * d] in ndc to [..., bins, s, s], fp32."""
        views = points.unflatten(-1, (self.num_keypoints, -1)).flatten(0, -3)
        return self.net(self.drawn(views)).float().unflatten(0, points.shape[:-1])


def code_of_points(ctx: StepContext, points_from: str) -> Tensor:
    """[B, G, K*d] of the view's "own" points, or of those of the "other" view carried here."""
    points = ctx.keypoints
    if points_from == "other":
        points = points_of_next_view(points, ctx.batch)
    return points.flatten(2)


class _Hog(Objective):
    """Smooth L1 between predicted and true oriented gradients of each augmented view."""

    def error(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Of [B, G, bins, s, s], the same shape; targets of one size are computed once."""
        cells = prediction.shape[-1]

        def make() -> Tensor:
            with torch.no_grad():
                return oriented_gradients(ctx.batch.views.flatten(0, 1), cells)

        target = ctx.once(("hog", cells), make).view_as(prediction)
        return F.smooth_l1_loss(prediction.float(), target, reduction="none")

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        return self.error(ctx, prediction).mean()


class ClassHog(_Hog):
    """The class token predicts the gradients of its view, of `cells` per side."""

    def __init__(
        self, *, weight: float | Schedule = 2.0, cells: int = 14, hidden_dim: int = 256
    ) -> None:
        super().__init__(weight)
        self.cells, self.hidden_dim = cells, hidden_dim

    def build(self, setup: Setup) -> None:
        self.head = HogHead(setup.dim, cells=self.cells, hidden_dim=self.hidden_dim)

    def predict(self, ctx: StepContext) -> Tensor:
        return torch.as_tensor(self.head(ctx.cls))


class PointHog(_Hog):
    """The pseudo-keypoints predict the gradients of their view, of `cells` per side.

    Args:
        head: points are drawn as "gaussians" for convolutions, or coordinates enter an "mlp".
        points_from: the view's "own" points, or those of the "other" view carried by the known map,
            which only points that move with the image help to predict.
        hidden_dim: None takes 64 channels or 256 of the MLP.
    """

    reads = frozenset({"keypoints"})
    built_last = True

    def __init__(
        self,
        *,
        weight: float | Schedule = 2.0,
        cells: int = 14,
        head: str = "gaussians",
        points_from: str = "other",
        hidden_dim: int | None = None,
    ) -> None:
        super().__init__(weight)
        one_of("head", head, ("gaussians", "mlp"))
        one_of("points_from", points_from, POINTS_FROM)
        self.cells, self.head_kind, self.points_from = cells, head, points_from
        self.hidden_dim = hidden_dim or (64 if head == "gaussians" else 256)

    def build(self, setup: Setup) -> None:
        points = setup.shared("keypoint")
        self.head: HogHead | PointHogHead
        sizes = {"cells": self.cells, "hidden_dim": self.hidden_dim}
        if self.head_kind == "gaussians":
            self.head = PointHogHead(points.num_keypoints, **sizes)
        else:
            self.head = HogHead(points.num_keypoints * points.num_dims, **sizes)

    def predict(self, ctx: StepContext) -> Tensor:
        return torch.as_tensor(self.head(code_of_points(ctx, self.points_from)))


class PatchHog(_Hog):
    """Every patch token predicts the gradients of its own patch, as in MaskFeat; "all" patches
    count, "masked" or "visible" ones. A patch has `per_patch` cells per side."""

    reads = frozenset({"masked_patches", "visible_patches"})

    def __init__(
        self, *, weight: float | Schedule = 1.0, where: str = "all", per_patch: int = 1
    ) -> None:
        super().__init__(weight)
        one_of("where", where, ("all", "masked", "visible"))
        self.where, self.per_patch = where, per_patch

    def build(self, setup: Setup) -> None:
        self.head = PatchHogHead(setup.dim, setup.grid_hw, per_patch=self.per_patch)

    def predict(self, ctx: StepContext) -> Tensor:
        return torch.as_tensor(self.head(ctx.patches))

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Scalar; 0 when no patch counts."""
        error = self.error(ctx, prediction)
        if self.where == "all":
            return error.mean()
        side = round(ctx.batch.is_masked.shape[-1] ** 0.5)
        counts = ctx.batch.is_masked.unflatten(-1, (side, side))
        counts = counts if self.where == "masked" else ~counts
        per_patch = prediction.shape[-1] // side
        counts = counts.repeat_interleave(per_patch, -2).repeat_interleave(per_patch, -1)
        counts = counts.unsqueeze(2).expand_as(error)
        return (error * counts).sum() / count_over_ranks(counts.sum(), sync=self.training)
