"""HOG targets: class token, pseudo-keypoints and patches predict oriented gradients of their view.

Ours, not the paper's. Grey values depend on light, skin and background; histograms of oriented
gradients (Dalal & Triggs 2005) normalised among neighbours depend on edges, and so on how fingers
bend. As a target of masked patches they are known from MaskFeat (Wei et al. 2022, arXiv
2112.09133); here the class token and the pseudo-keypoints predict them too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.geometry.camera import cell_centres_ndc
from handmim.geometry.crop import from_source, to_source
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext
from handmim.types import PretrainBatch
from handmim.utils.arguments import one_of
from handmim.utils.ranks import count_over_ranks

CELL_PX = 8  # pixels per side of a cell for gradients
MAX_ENTRY = 0.5  # of a normalised histogram: one strong edge must not dominate the others
FLOOR = 0.02  # of the neighbourhood's contrast: flat cells stay flat
SCALE = 0.15  # about the deviation of entries, so that errors are of order one
WHERE = ("all", "masked", "visible")
POINT_HEADS = ("gaussians", "mlp")
POINTS_FROM = ("own", "other")
BINS = 9  # orientations


def oriented_gradients(image: Tensor, cells: int, bins: int = BINS) -> Tensor:
    """Histograms of gradient orientation, each divided by the contrast of its neighbourhood.

    Args:
        image: [M, 3, H, W] in [0, 1], resized by area so that a cell is 8 x 8 pixels.
        cells: s, cells per side.
        bins: orientations over half a circle; an edge and its negative are the same.
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
    position = torch.atan2(dy, dx).remainder(math.pi) * (bins / math.pi)  # 0 .. bins, cyclic
    centre = torch.arange(bins, device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
    gap = (position - centre).abs_()
    share = torch.minimum(gap, bins - gap).neg_().add_(1).clamp_(min=0)  # linear in the angle
    histogram = F.avg_pool2d(share.mul_(magnitude), CELL_PX)
    energy = F.pad(histogram.square().sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    contrast = F.avg_pool2d(energy, 3, stride=1).sqrt()
    return (histogram / (contrast + FLOOR)).clamp(max=MAX_ENTRY) / SCALE


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


class HogHead(nn.Module):
    """Histograms of a whole view from its class token or from its pseudo-keypoints.

    Args:
        dim: width of the vector.
        cells: s, cells per side.
        bins: orientations.
        hidden_dim, num_hidden: MLP sizes.
    """

    def __init__(
        self, dim: int, *, cells: int, bins: int = BINS, hidden_dim: int = 256, num_hidden: int = 1
    ) -> None:
        super().__init__()
        self.bins, self.cells = bins, cells
        self.mlp = mlp(dim, hidden_dim, bins * cells * cells, num_hidden)

    def forward(self, vector: Tensor) -> Tensor:
        """[..., D] to [..., bins, s, s], fp32."""
        return self.mlp(vector).float().unflatten(-1, (self.bins, self.cells, self.cells))


class PatchHogHead(nn.Module):
    """Histograms of every patch from its own token.

    Args:
        dim: width of the tokens.
        grid_hw: patches per column and row.
        bins: orientations.
        per_patch: c, cells per side of a patch.
    """

    def __init__(
        self, dim: int, grid_hw: tuple[int, int], *, bins: int = BINS, per_patch: int = 1
    ) -> None:
        super().__init__()
        if grid_hw[0] != grid_hw[1]:
            raise ValueError(f"patch_hog requires a square grid of patches, got {grid_hw}")
        self.grid_hw, self.bins, self.per_patch = grid_hw, bins, per_patch
        self.cells = grid_hw[0] * per_patch
        self.project = mlp(dim, 0, bins * per_patch * per_patch, 0)

    def forward(self, patches: Tensor) -> Tensor:
        """[..., N, D] tokens to [..., bins, h c, w c], fp32."""
        (h, w), c = self.grid_hw, self.per_patch
        x = self.project(patches).float().unflatten(-1, (self.bins, c, c))
        x = x.unflatten(-4, (h, w))  # [..., h, w, bins, c, c]
        x = x.movedim(-3, -5).movedim(-2, -3)  # [..., bins, h, c, w, c]
        return x.flatten(-4, -3).flatten(-2, -1)


class PointHogHead(nn.Module):
    """Histograms of a whole view from its pseudo-keypoints, each drawn as a Gaussian.

    Convolutions read the drawn maps, so a point predicts the gradients around its own position; a
    pose encoded in coordinates elsewhere is of no use. Drawing landmarks for a decoder is known
    from Jakab et al. (2018, arXiv 1806.07823), whose decoder reconstructs the image and gets
    another one for its appearance; oriented gradients need no appearance.

    Args:
        num_keypoints: K.
        cells: s, cells per side.
        bins: orientations.
        fine: drawn pixels per side of a cell.
        sigma_cells: width of a Gaussian in cells.
        hidden_dim: channels.
        num_hidden: 3 x 3 convolutions between cells; each adds one cell around a point.
    Raises: ValueError for sizes that leave no Gaussian.
    """

    centres_ndc: Tensor

    def __init__(
        self,
        num_keypoints: int,
        *,
        cells: int,
        bins: int = BINS,
        fine: int = 2,
        sigma_cells: float = 0.75,
        hidden_dim: int = 64,
        num_hidden: int = 1,
    ) -> None:
        super().__init__()
        if fine < 1 or sigma_cells <= 0:
            raise ValueError(f"fine must be >= 1 and sigma_cells > 0, got {fine} and {sigma_cells}")
        self.num_keypoints, self.bins, self.cells = num_keypoints, bins, cells
        self.sharpness = 0.5 / (2.0 * sigma_cells / cells) ** 2
        centres_ndc = cell_centres_ndc(cells * fine)
        self.register_buffer("centres_ndc", centres_ndc, persistent=False)
        layers: list[nn.Module] = [
            nn.Conv2d(num_keypoints, hidden_dim, fine + 2, stride=fine, padding=1),
            nn.GELU(),
        ]
        for _ in range(num_hidden):
            layers += [nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1), nn.GELU()]
        layers.append(nn.Conv2d(hidden_dim, bins, 1))
        self.net = nn.Sequential(*layers)

    def drawn(self, points_ndc: Tensor) -> Tensor:
        """[V, K, d] to [V, K, s fine, s fine] Gaussians of height 1; depth is not drawn, fp32."""
        gap = points_ndc[..., :2, None].float() - self.centres_ndc  # [V, K, 2, s fine]
        x, y = (-self.sharpness * gap.square()).exp().unbind(dim=2)
        return y[..., :, None] * x[..., None, :]

    def forward(self, points: Tensor) -> Tensor:
        """[..., K * d] in ndc to [..., bins, s, s], fp32."""
        views = points.unflatten(-1, (self.num_keypoints, -1)).flatten(0, -3)
        return self.net(self.drawn(views)).float().unflatten(0, points.shape[:-1])


def points_of_other_view(points: Tensor, batch: PretrainBatch) -> Tensor:
    """[B, G, K, d] the next view's points, carried to each view by the known maps."""
    maps = batch.source_from_view, batch.displacement_ndc
    return from_source(to_source(points, *maps).roll(-1, dims=1), *maps)


def code_of_points(ctx: StepContext, points_from: str) -> Tensor:
    """[B, G, K*d] of the view's "own" points, or of those of the "other" view carried here."""
    points = ctx.keypoints
    return (points_of_other_view(points, ctx.batch) if points_from == "other" else points).flatten(
        2
    )


class _Hog(Objective):
    """Smooth L1 between predicted and true oriented gradients of each augmented view."""

    head: HogHead | PatchHogHead | PointHogHead

    def error(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Of [B, G, bins, s, s], the same shape; targets of one size are computed once."""
        bins, cells = prediction.shape[2], prediction.shape[-1]

        def make() -> Tensor:
            with torch.no_grad():
                return oriented_gradients(ctx.batch.views.flatten(0, 1), cells, bins)

        target = ctx.once(("hog", bins, cells), make).view_as(prediction)
        return F.smooth_l1_loss(prediction.float(), target, reduction="none")

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        return self.error(ctx, prediction).mean()


class ClassHog(_Hog):
    """The class token predicts the gradients of its view.

    Args:
        weight: of the loss.
        cells: per side of the view.
        hidden_dim: of the `HogHead`.
    """

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
    """The pseudo-keypoints predict the gradients of their view.

    Args:
        weight: of the loss.
        cells: per side of the view.
        head: points are drawn as "gaussians" for convolutions, or their coordinates are the input
            of an "mlp".
        points_from: the points are the view's "own", or those of the "other" view carried by the
            known map, which only points that move with the image help to predict.
        hidden_dim: of the head; None takes 64 channels or 256 of the MLP.
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
        one_of("head", head, POINT_HEADS)
        one_of("points_from", points_from, POINTS_FROM)
        self.cells, self.head_kind, self.points_from = cells, head, points_from
        self.hidden_dim = hidden_dim or (64 if head == "gaussians" else 256)

    def build(self, setup: Setup) -> None:
        points = setup.shared("keypoint")
        sizes = {"cells": self.cells, "hidden_dim": self.hidden_dim}
        if self.head_kind == "gaussians":
            self.head = PointHogHead(points.num_keypoints, **sizes)
        else:
            self.head = HogHead(points.num_keypoints * points.num_dims, **sizes)

    def predict(self, ctx: StepContext) -> Tensor:
        return torch.as_tensor(self.head(code_of_points(ctx, self.points_from)))


class PatchHog(_Hog):
    """Every patch token predicts the gradients of its own patch, as in MaskFeat.

    Args:
        weight: of the loss.
        where: "all" patches count, "masked" or "visible" ones.
        per_patch: cells per side of a patch.
    """

    reads = frozenset({"masked_patches", "visible_patches"})

    def __init__(
        self, *, weight: float | Schedule = 1.0, where: str = "all", per_patch: int = 1
    ) -> None:
        super().__init__(weight)
        one_of("where", where, WHERE)
        self.where, self.per_patch = where, per_patch

    def build(self, setup: Setup) -> None:
        self.head = PatchHogHead(setup.dim, setup.grid_hw, per_patch=self.per_patch)

    def predict(self, ctx: StepContext) -> Tensor:
        hog: Tensor = self.head(ctx.student.patches)
        return hog.unflatten(0, ctx.shape)

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
