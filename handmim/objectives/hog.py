"""HOG targets: class token, pseudo-keypoints, patches and a feature pyramid predict the oriented
gradients of their view.

Ours, but for masked patches (MaskFeat, Wei et al. 2022, arXiv 2112.09133). Normalised histograms
of oriented gradients (Dalal & Triggs 2005) depend on edges rather than on light and skin.
"""

import math
from dataclasses import field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.geometry.camera import cell_centres_ndc
from handmim.losses.composite import choice, loss_dataclass
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext
from handmim.objectives.point_sets import points_of_next_view
from handmim.utils.ranks import count_over_ranks

CELL_PX = 8  # pixels per side of a cell for gradients
MAX_ENTRY = 0.5  # of a normalised histogram: one strong edge must not dominate the others
FLOOR = 0.02  # of the neighbourhood's contrast: flat cells stay flat
SCALE = 0.15  # about the deviation of entries, so that errors are of order one
BINS = 9  # orientations over half a circle; an edge and its negative are the same
FINE = 2  # drawn pixels per side of a cell
MIN_CELL_PX = 2  # of the image, below which a histogram has no orientation
SIGMA_CELLS = 0.75  # width of a drawn Gaussian


def oriented_gradients(image: Tensor, cells: int) -> Tensor:
    """Histograms of gradient orientation, each divided by the contrast of its neighbourhood.

    [M, 3, H, W] in [0, 1], resized by area to `CELL_PX` per cell, to [M, bins, s, s], about 0 .. 3,
    fp32, of s cells per side.
    """
    return normalised(orientations(image, cells))


def orientations(image: Tensor, cells: int, cell_px: int = CELL_PX) -> Tensor:
    """Mean magnitude by orientation: [M, 3, H, W], resized to `cell_px` per cell, to
    [M, bins, s, s]."""
    side = cells * cell_px
    x = image.float()
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode="area")
    dx = F.pad(x[..., 2:] - x[..., :-2], (1, 1, 0, 0))
    dy = F.pad(x[..., 2:, :] - x[..., :-2, :], (0, 0, 1, 1))
    fields = dx.square() + dy.square(), dx, dy
    best = [x[:, :1] for x in fields]  # of the colour that changes most
    for c in range(1, x.shape[1]):  # argmax over a strided dimension is slow on a CPU
        other = [x[:, c : c + 1] for x in fields]
        is_stronger = other[0] > best[0]
        best = [torch.where(is_stronger, a, b) for a, b in zip(other, best, strict=True)]
    magnitude, dx, dy = best[0].sqrt(), best[1], best[2]
    position = torch.atan2(dy, dx).remainder(math.pi) * (BINS / math.pi)  # 0 .. bins, cyclic
    centre = torch.arange(BINS, device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
    gap = (position - centre).abs_()
    share = torch.minimum(gap, BINS - gap).neg_().add_(1).clamp_(min=0)  # linear in the angle
    return F.avg_pool2d(share.mul_(magnitude), cell_px)


def normalised(histogram: Tensor) -> Tensor:
    """[M, bins, s, s] by the contrast of each cell's neighbourhood."""
    energy = F.pad(histogram.square().sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    contrast = F.avg_pool2d(energy, 3, stride=1).sqrt()
    return (histogram / (contrast + FLOOR)).clamp(max=MAX_ENTRY) / SCALE


class ViewRegression(Objective):
    """An MLP predicts numbers of each view from its class token or its pseudo-keypoints."""

    hidden_dim: int | None = None
    points_from: str | None = None  # the view's "own", or the "other" view's carried here

    def build_mlp(self, setup: Setup, *shape: int) -> None:
        """Make the MLP for numbers of a shape."""
        self.shape, width = shape, setup.dim
        if self.points_from is not None:
            head = setup.shared("keypoint")
            width = head.num_keypoints * head.num_dims
        self.mlp = mlp(width, self.hidden_dim or 256, math.prod(shape), 1)

    def points(self, ctx: StepContext) -> Tensor:
        """[B, G, K, d] in each view's ndc."""
        points = ctx.keypoints
        return points_of_next_view(points, ctx.batch) if self.points_from == "other" else points

    def predict(self, ctx: StepContext) -> Tensor:
        """[B, G, *shape], fp32."""
        vectors = ctx.cls if self.points_from is None else self.points(ctx).flatten(2)
        numbers: Tensor = self.mlp(vectors).float()
        return numbers.unflatten(-1, self.shape)


@loss_dataclass
class _Hog(ViewRegression):
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


@loss_dataclass
class ClassHog(_Hog):
    """The class token predicts the gradients of its view, of `cells` per side."""

    weight: float | Schedule = 2.0
    cells: int = 14
    hidden_dim: int = 256

    def build(self, setup: Setup) -> None:
        self.build_mlp(setup, BINS, self.cells, self.cells)


@loss_dataclass
class PointHog(_Hog):
    """The pseudo-keypoints predict the gradients of their view, of `cells` per side.

    Their coordinates enter an "mlp", or "gaussians" are drawn for convolutions (known from Jakab et
    al. 2018, arXiv 1806.07823): a point then predicts gradients around its own position. Only
    points that move with the image help to predict those of the "other" view.
    """

    reads = frozenset({"keypoints"})
    built_last = True
    weight: float | Schedule = 2.0
    cells: int = 14
    head: str = choice("gaussians", "mlp")
    points_from: str = choice("other", "own")
    hidden_dim: int | None = None  # None takes 64 channels, or 256 of the MLP
    centres_ndc: Tensor = field(init=False)

    def build(self, setup: Setup) -> None:
        if self.head == "mlp":
            self.build_mlp(setup, BINS, self.cells, self.cells)
            return
        width = self.hidden_dim or 64
        self.sharpness = 0.5 / (2.0 * SIGMA_CELLS / self.cells) ** 2
        self.register_buffer("centres_ndc", cell_centres_ndc(self.cells * FINE), persistent=False)
        num_keypoints = setup.shared("keypoint").num_keypoints
        self.net = nn.Sequential(
            nn.Conv2d(num_keypoints, width, FINE + 2, stride=FINE, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, BINS, 1),
        )

    def predict(self, ctx: StepContext) -> Tensor:
        """[B, G, bins, s, s], fp32; depth is not drawn."""
        if self.head == "mlp":
            return super().predict(ctx)
        points = self.points(ctx)
        gap = points.flatten(0, 1)[..., :2, None].float() - self.centres_ndc  # [V, K, 2, s fine]
        x, y = (-self.sharpness * gap.square()).exp().unbind(dim=2)
        drawn = y[..., :, None] * x[..., None, :]  # of height 1
        return self.net(drawn).float().unflatten(0, points.shape[:2])


@loss_dataclass
class PatchHog(_Hog):
    """Every patch token predicts the gradients of its own patch, as in MaskFeat; "all" patches
    count, "masked" or "visible" ones. A patch has `per_patch` cells per side."""

    reads = frozenset({"masked_patches", "visible_patches"})
    where: str = choice("all", "masked", "visible")
    per_patch: int = 1

    def build(self, setup: Setup) -> None:
        if setup.grid_hw[0] != setup.grid_hw[1]:
            raise ValueError(f"patch_hog requires a square grid of patches, got {setup.grid_hw}")
        self.side = setup.grid_hw[0]
        self.project = mlp(setup.dim, 0, BINS * self.per_patch**2, 0)

    def predict(self, ctx: StepContext) -> Tensor:
        """[B, G, bins, h c, w c], fp32."""
        numbers = self.project(ctx.patches).float()
        x = numbers.unflatten(-1, (BINS, self.per_patch, self.per_patch))
        x = x.unflatten(-4, (self.side, self.side))  # [..., h, w, bins, c, c]
        x = x.movedim(-3, -5).movedim(-2, -3)  # [..., bins, h, c, w, c]
        return x.flatten(-4, -3).flatten(-2, -1)

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


@loss_dataclass
class PyramidHog(Objective):
    """Every map of a feature pyramid on the patch tokens, the shared head `neck`, predicts the
    gradients of its view, one cell per place of the map but none below `MIN_CELL_PX`; all maps
    count alike. The neck is exported for a head that has such a pyramid (pretraining a neck: iTPN,
    Tian et al. 2023, arXiv 2211.12735)."""

    reads = frozenset({"cls", "masked_patches", "visible_patches"})
    weight: float | Schedule = 2.0

    def build(self, setup: Setup) -> None:
        if setup.grid_hw[0] != setup.grid_hw[1] or setup.patch_px < MIN_CELL_PX:
            text = f"a square grid of patches of {MIN_CELL_PX} px at least"
            raise ValueError(f"pyramid_hog requires {text}, got {setup.grid_hw}, {setup.patch_px}")
        neck = setup.shared("neck")
        self.taps, side, num_levels = neck.taps, setup.grid_hw[0], neck.settings["num_levels"]
        if any(not 1 <= block <= setup.depth for block in self.taps):
            blocks = f"blocks 1 to {setup.depth}"
            raise ValueError(f"taps are {blocks}, got {list(self.taps)} (task.heads.neck.taps)")
        finest = num_levels - 1
        while setup.patch_px < MIN_CELL_PX * 2**finest:
            finest -= 1
        self.cells = [side * 2 ** min(level, finest) for level in range(num_levels)]
        self.cell_px = min(CELL_PX, setup.patch_px // 2**finest)
        self.projects = nn.ModuleList(nn.Conv2d(neck.channels, BINS, 1) for _ in self.cells)

    def predict(self, ctx: StepContext) -> list[Tensor]:
        """[B G, bins, s, s] of each map, fp32."""
        tapped = tuple(ctx.tapped[block] for block in self.taps)
        maps = ctx.heads["neck"].of_tokens(ctx.student._replace(taps=tapped))
        made = []
        for project, each, cells in zip(self.projects, maps, self.cells, strict=True):
            numbers = project(each).float()
            made.append(F.avg_pool2d(numbers, numbers.shape[-1] // cells))
        return made

    @torch.no_grad()
    def target(self, ctx: StepContext) -> list[Tensor]:
        """[B G, bins, s, s] for each map, coarse histograms as means of the finest ones."""
        fine = orientations(ctx.batch.views.flatten(0, 1), self.cells[-1], self.cell_px)
        return [normalised(F.avg_pool2d(fine, self.cells[-1] // cells)) for cells in self.cells]

    def loss(self, ctx: StepContext, prediction: list[Tensor]) -> Tensor:
        pairs = zip(prediction, self.target(ctx), strict=True)
        errors = [F.smooth_l1_loss(made, true) for made, true in pairs]
        return torch.stack(errors).mean()
