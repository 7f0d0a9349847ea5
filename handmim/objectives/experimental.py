"""Objectives that are in no method because they did not help, or were not measured in a table.

All are ours. Measured: low-resolution reconstruction; HOG targets did better (docs/experiments.md,
"What each part brings"). Not measured: dense matching (relatives: VADeR, arXiv 2011.05499; PixPro,
arXiv 2011.10043), latent equivariance (TI-Net's idea, arXiv 2502.12535), flow of warped views.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.geometry.camera import cell_centres_ndc
from handmim.geometry.crop import scale_of
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext
from handmim.objectives.hog import POINTS_FROM, code_of_points
from handmim.objectives.peclr import carried, linear_part
from handmim.objectives.point_sets import KINDS, in_source
from handmim.utils.arguments import above, one_of
from handmim.utils.ranks import count_over_ranks, gathered, mean_over_ranks

BETA, EDGE_BETA = 0.3, 0.1  # where smooth L1 becomes linear on grey values and on differences
HIDDEN_DIM = 256


def low_resolution(views: Tensor, side_px: int) -> Tensor:
    """[B, G, 3, H, W] in [0, 1] to area-pooled grey images [B, G, t, t] of mean 0, deviation 1."""
    grey = views.float().mean(dim=2)
    small = F.interpolate(grey, size=(side_px, side_px), mode="area")
    var, mean = torch.var_mean(small, dim=(-2, -1), keepdim=True, correction=0)
    return (small - mean) / (var + 1e-4).sqrt()


def low_resolution_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 on values [..., t, t] plus that on horizontal and vertical differences: scalar."""
    value = F.smooth_l1_loss(pred, target, beta=BETA)
    edge_x = F.smooth_l1_loss(pred.diff(dim=-1), target.diff(dim=-1), beta=EDGE_BETA)
    edge_y = F.smooth_l1_loss(pred.diff(dim=-2), target.diff(dim=-2), beta=EDGE_BETA)
    return value + 0.5 * (edge_x + edge_y)


class LowResRecon(Objective):
    """A small grey image of each view, `side_px` wide (landmark bottlenecks: Jakab et al. 2018,
    arXiv 1806.07823; Zhang et al. 2018, arXiv 1804.04412)."""

    mlp: nn.Sequential

    def __init__(self, *, weight: float | Schedule = 2.0, side_px: int = 24) -> None:
        super().__init__(weight)
        self.side_px = side_px

    def reconstruct(self, vector: Tensor) -> Tensor:
        """[..., D] to [..., t, t] standardised grey values, fp32."""
        grey: Tensor = self.mlp(vector).float()
        return grey.unflatten(-1, (self.side_px, self.side_px))

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        return low_resolution_loss(prediction, low_resolution(ctx.batch.views, self.side_px))


class ClassRecon(LowResRecon):
    """From the class token."""

    def build(self, setup: Setup) -> None:
        self.mlp = mlp(setup.dim, HIDDEN_DIM, self.side_px**2, 1)

    def predict(self, ctx: StepContext) -> Tensor:
        return self.reconstruct(ctx.cls)


class PointRecon(LowResRecon):
    """From the view's "own" pseudo-keypoints, or those of the "other" view carried here."""

    reads = frozenset({"keypoints"})
    built_last = True

    def __init__(
        self, *, weight: float | Schedule = 2.0, side_px: int = 24, points_from: str = "other"
    ) -> None:
        super().__init__(weight=weight, side_px=side_px)
        one_of("points_from", points_from, POINTS_FROM)
        self.points_from = points_from

    def build(self, setup: Setup) -> None:
        points = setup.shared("keypoint")
        width = points.num_keypoints * points.num_dims
        self.mlp = mlp(width, HIDDEN_DIM, self.side_px**2, 1)

    def predict(self, ctx: StepContext) -> Tensor:
        return self.reconstruct(code_of_points(ctx, self.points_from))


class ViewFlow(Objective):
    """The control values of a view's known warp, `warp_grid` per side (c), regressed from its class
    token; smooth L1, linear from `beta_ndc`."""

    def __init__(
        self, *, weight: float | Schedule = 1.0, warp_grid: int = 4, beta_ndc: float = 0.05
    ) -> None:
        super().__init__(weight)
        self.warp_grid, self.beta_ndc = warp_grid, beta_ndc

    def build(self, setup: Setup) -> None:
        self.mlp = mlp(setup.dim, HIDDEN_DIM, 2 * self.warp_grid**2, 1)

    def predict(self, ctx: StepContext) -> Tensor:
        """[B, G, 2, c, c] control values in ndc, fp32."""
        control: Tensor = self.mlp(ctx.cls).float()
        return control.unflatten(-1, (2, self.warp_grid, self.warp_grid))

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Scalar. Raises: ValueError when views are not warped."""
        target = ctx.batch.displacement_ndc
        if target is None:
            raise ValueError("view_flow requires warped views: views.warp_ndc > 0")
        return F.smooth_l1_loss(torch.as_tensor(prediction), target, beta=self.beta_ndc)


def patch_centres(num_patches: int, device: torch.device | None = None) -> Tensor:
    """[N, 2] ndc of the centres of a square grid of patches, row by row."""
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(f"dense_match requires a square grid of patches, got {num_patches}")
    c = cell_centres_ndc(side, device)
    y, x = torch.meshgrid(c, c, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


class DenseMatch(Objective):
    """Patches of two views at one position of the source find each other by their tokens.

    Cross-entropy of a patch's partners in another view, mean over ordered pairs of different views
    and patches with a partner; 0 when no patch has one. Targets around the true position are
    `sigma` patches wide; patches further than `max_distance` from the nearest do not count.
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
        return F.normalize(self.project(ctx.patches).float(), dim=-1)

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        num_views, num_patches = prediction.shape[1:3]
        centres = patch_centres(num_patches, prediction.device).expand(*prediction.shape[:3], 2)
        positions = in_source(centres, ctx.batch)  # [B, G, N, 2]
        scale = scale_of(ctx.batch.source_from_view.float())
        patch_ndc = scale * (2.0 / num_patches**0.5)  # [B, G] side of a patch in the source
        costs = []
        for u in range(num_views):
            for t in range(num_views):
                if t == u:
                    continue
                with torch.autocast(prediction.device.type, enabled=False):
                    similarity = prediction[:, u].float() @ prediction[:, t].float().mT / self.temp
                gap = (positions[:, u, :, None] - positions[:, t, None]).square().sum(dim=-1)
                gap = gap / patch_ndc[:, t, None, None].square()  # [B, N, N] in patches
                target = (-gap / (2 * self.sigma**2)).softmax(dim=-1)
                counts = gap.amin(dim=-1) <= self.max_distance**2
                ce = -(target * similarity.log_softmax(dim=-1)).sum(dim=-1)
                num = count_over_ranks(counts.sum(), sync=self.training)
                costs.append((ce * counts).sum() / num)
        return sum(costs[1:], start=costs[0]) / len(costs)


class LatentEquivariance(Objective):
    """Channels of the class token move as the image moves: equivariance without any points.

    Pairs of channels are read as vectors of the plane, which the linear part of a view's known map
    carries to the source crop, where two views must agree. A hinge acts against collapse.

    Args:
        kind: "cosine" (1 - cosine of all vectors of a sample, blind to size) | "smooth_l1" | "l2"
            (both divided by the vectors' detached root mean square, l2 twice).
        with_scale: vectors grow and shrink with the view; the cosine sees no difference.
        share: part of the channels that is carried; the rest may be invariant.
        beta: where smooth L1 becomes linear, in root mean squares.
        variance_weight, min_std: of the hinge, on the deviation of a coordinate over the batch.
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
            dim = cls.shape[-1]
            num_pairs = int(self.share * dim) // 2
            if dim % 2 or num_pairs < 1:
                raise ValueError(f"no channel pairs in a share of {self.share} of {dim} channels")
            vectors = cls.float()[..., : 2 * num_pairs].unflatten(-1, (num_pairs, 2))
            linear = linear_part(ctx.batch.source_from_view, with_scale=self.with_scale)
            in_source = carried(linear, vectors).flatten(-2)  # [B, G, 2P]
            # Cyclic: every unordered pair of views, as the distance is symmetric.
            costs = [
                self._distance(in_source, in_source.roll(-shift, dims=1))
                for shift in range(1, in_source.shape[1] // 2 + 1)
            ]
            return torch.stack(costs).mean() + self.variance_weight * self._hinge(in_source)

    def _hinge(self, vectors: Tensor) -> Tensor:
        rows = vectors.flatten(0, 1)
        rows = gathered(rows)[0] if self.training else rows
        if len(rows) < 2:
            return rows.sum() * 0.0
        return F.relu(self.min_std - (rows.var(dim=0) + 1e-8).sqrt()).square().mean()

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        if self.kind == "cosine":
            return (1.0 - F.cosine_similarity(a, b, dim=-1, eps=1e-6)).mean()
        square = a.detach().square().mean()
        size = ((mean_over_ranks(square) if self.training else square) + 1e-6).sqrt()
        if self.kind == "smooth_l1":
            return F.smooth_l1_loss(a / size, b / size, beta=self.beta)
        return F.mse_loss(a / size, b / size)
