"""Objectives that are in no method because they did not help, or were not measured in a table.

All are ours. Measured: low-resolution reconstruction; HOG targets did better (docs/experiments.md,
"What each part brings"). Not measured: dense matching (relatives: VADeR, arXiv 2011.05499; PixPro,
arXiv 2011.10043), latent equivariance (TI-Net's idea, arXiv 2502.12535), flow of warped views.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.geometry.camera import cell_centres_ndc
from handmim.geometry.crop import scale_of
from handmim.losses.composite import choice, loss_dataclass, positive
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext
from handmim.objectives.hog import ViewRegression
from handmim.objectives.point_sets import carried, in_source, linear_part
from handmim.utils.ranks import count_over_ranks, gathered, mean_over_ranks

BETA, EDGE_BETA = 0.3, 0.1  # where smooth L1 becomes linear on grey values and on differences


def low_resolution(views: Tensor, side_px: int) -> Tensor:
    """[B, G, 3, H, W] in [0, 1] to area-pooled grey images [B, G, t, t] of mean 0, deviation 1."""
    grey = views.float().mean(dim=2)
    small = F.interpolate(grey, size=(side_px, side_px), mode="area")
    var, mean = torch.var_mean(small, dim=(-2, -1), keepdim=True, correction=0)
    return (small - mean) / (var + 1e-4).sqrt()


class LowResRecon(ViewRegression):
    """A small grey image of each view, `side_px` wide (landmark bottlenecks: Jakab et al. 2018,
    arXiv 1806.07823; Zhang et al. 2018, arXiv 1804.04412)."""

    side_px: int

    def build(self, setup: Setup) -> None:
        self.build_mlp(setup, self.side_px, self.side_px)

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Smooth L1 on grey values [B, G, t, t] and on horizontal and vertical differences."""
        target = low_resolution(ctx.batch.views, self.side_px)
        value = F.smooth_l1_loss(prediction, target, beta=BETA)
        edge_x = F.smooth_l1_loss(prediction.diff(dim=-1), target.diff(dim=-1), beta=EDGE_BETA)
        edge_y = F.smooth_l1_loss(prediction.diff(dim=-2), target.diff(dim=-2), beta=EDGE_BETA)
        return value + 0.5 * (edge_x + edge_y)


@loss_dataclass
class ClassRecon(LowResRecon):
    """From the class token."""

    weight: float | Schedule = 2.0
    side_px: int = 24


@loss_dataclass
class PointRecon(LowResRecon):
    """From the view's "own" pseudo-keypoints, or those of the "other" view carried here."""

    reads = frozenset({"keypoints"})
    built_last = True
    weight: float | Schedule = 2.0
    side_px: int = 24
    points_from: str = choice("other", "own")


@loss_dataclass
class ViewFlow(ViewRegression):
    """The control values of a view's known warp, `warp_grid` per side (c), regressed from its class
    token; smooth L1, linear from `beta_ndc`."""

    warp_grid: int = 4
    beta_ndc: float = 0.05

    def build(self, setup: Setup) -> None:
        self.build_mlp(setup, 2, self.warp_grid, self.warp_grid)

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Scalar. Raises: ValueError when views are not warped."""
        target = ctx.batch.displacement_ndc
        if target is None:
            raise ValueError("view_flow requires warped views: views.warp_ndc > 0")
        return F.smooth_l1_loss(torch.as_tensor(prediction), target, beta=self.beta_ndc)


@loss_dataclass
class DenseMatch(Objective):
    """Patches of two views at one position of the source find each other by their tokens.

    Cross-entropy of a patch's partners in another view, mean over ordered pairs of different views
    and patches with a partner; 0 when no patch has one. Targets around the true position are
    `sigma` patches wide; patches further than `max_distance` from the nearest do not count.
    """

    reads = frozenset({"masked_patches", "visible_patches"})
    weight: float | Schedule = 0.5
    temp: float = positive(0.1)
    sigma: float = positive(0.6)
    max_distance: float = positive(0.75)
    out_dim: int = 64

    def build(self, setup: Setup) -> None:
        self.project = mlp(setup.dim, 0, self.out_dim, 0)

    def predict(self, ctx: StepContext) -> Tensor:
        """[B, G, N, E] of length 1, fp32."""
        return F.normalize(self.project(ctx.patches).float(), dim=-1)

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        num_views, num_patches = prediction.shape[1:3]
        side = round(num_patches**0.5)
        if side * side != num_patches:
            raise ValueError(f"dense_match requires a square grid of patches, got {num_patches}")
        along = cell_centres_ndc(side, prediction.device)
        centres = torch.cartesian_prod(along, along).flip(-1)  # [N, 2] row by row
        positions = in_source(centres.expand(*prediction.shape[:3], 2), ctx.batch)  # [B, G, N, 2]
        scale = scale_of(ctx.batch.source_from_view.float())
        patch_ndc = scale * (2.0 / num_patches**0.5)  # [B, G] side of a patch in the source
        costs = []
        for u, t in itertools.permutations(range(num_views), 2):
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


@loss_dataclass
class LatentEquivariance(Objective):
    """Channels of the class token move as the image moves: equivariance without any points.

    Pairs of channels are read as vectors of the plane, which the linear part of a view's known map
    carries to the source crop, where two views must agree. A hinge acts against collapse.
    """

    kind: str = choice("cosine", "smooth_l1", "l2")  # see `loss`
    with_scale: bool = False  # vectors grow and shrink with the view; the cosine sees no difference
    share: float = 1.0  # part of the channels that is carried; the rest may be invariant
    beta: float = positive(0.1)  # where smooth L1 becomes linear, in root mean squares
    variance_weight: float = 1.0  # of the hinge
    min_std: float = 0.5  # required deviation of a coordinate over the batch

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {self.share}")

    def loss(self, ctx: StepContext, prediction: None) -> Tensor:
        """1 - cosine of all vectors of a sample, or distances divided by the vectors' detached root
        mean square, twice for l2."""
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
            rows = in_source.flatten(0, 1)
            rows = gathered(rows)[0] if self.training else rows
            hinge = rows.sum() * 0.0
            if len(rows) >= 2:
                std = (rows.var(dim=0) + 1e-8).sqrt()
                hinge = F.relu(self.min_std - std).square().mean()
            return torch.stack(costs).mean() + self.variance_weight * hinge

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        if self.kind == "cosine":
            return (1.0 - F.cosine_similarity(a, b, dim=-1, eps=1e-6)).mean()
        square = a.detach().square().mean()
        size = ((mean_over_ranks(square) if self.training else square) + 1e-6).sqrt()
        if self.kind == "smooth_l1":
            return F.smooth_l1_loss(a / size, b / size, beta=self.beta)
        return F.mse_loss(a / size, b / size)
