"""Low-resolution reconstruction: a small grey image of the view from the class token or the points.

Ours, not the paper's. HOG targets did better (docs/experiments.md, "What each part brings"). Points
that reconstruct bent fingers cannot be a rigid template. Relatives are landmark bottlenecks for
images (Jakab et al. 2018, arXiv 1806.07823; Zhang et al. 2018, arXiv 1804.04412).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.models.layers import mlp
from handmim.objectives.base import Objective, Setup, StepContext
from handmim.objectives.hog import POINTS_FROM, code_of_points
from handmim.utils.arguments import one_of

BETA, EDGE_BETA = 0.3, 0.1  # where smooth L1 becomes linear on values and on differences
HIDDEN_DIM = 256


def low_resolution(views: Tensor, side_px: int) -> Tensor:
    """Area-pooled grey images with mean 0 and deviation 1.

    Args:
        views: [B, G, 3, H, W] in [0, 1].
        side_px: side t of the result.
    Returns: [B, G, t, t].
    """
    grey = views.float().mean(dim=2)
    small = F.interpolate(grey, size=(side_px, side_px), mode="area")
    var, mean = torch.var_mean(small, dim=(-2, -1), keepdim=True, correction=0)
    return (small - mean) / (var + 1e-4).sqrt()


def low_resolution_loss(pred: Tensor, target: Tensor, beta: float, edge_beta: float) -> Tensor:
    """Smooth L1 on values plus smooth L1 on horizontal and vertical differences: [..., t, t] ->
    scalar."""
    value = F.smooth_l1_loss(pred, target, beta=beta)
    edge_x = F.smooth_l1_loss(pred.diff(dim=-1), target.diff(dim=-1), beta=edge_beta)
    edge_y = F.smooth_l1_loss(pred.diff(dim=-2), target.diff(dim=-2), beta=edge_beta)
    return value + 0.5 * (edge_x + edge_y)


class LowResRecon(Objective):
    """`low_resolution_loss` of each view.

    Args:
        weight: of the loss.
        side_px: side t of the reconstruction.
    """

    mlp: nn.Sequential

    def __init__(self, *, weight: float | Schedule = 2.0, side_px: int = 24) -> None:
        super().__init__(weight)
        self.side_px = side_px

    def reconstruct(self, vector: Tensor) -> Tensor:
        """[..., D] to [..., t, t] standardised grey values, fp32."""
        grey: Tensor = self.mlp(vector).float()
        return grey.unflatten(-1, (self.side_px, self.side_px))

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        target = low_resolution(ctx.batch.views, self.side_px)
        return low_resolution_loss(prediction, target, BETA, EDGE_BETA)


class ClassRecon(LowResRecon):
    """From the class token."""

    def build(self, setup: Setup) -> None:
        self.mlp = mlp(setup.dim, HIDDEN_DIM, self.side_px**2, 1)

    def predict(self, ctx: StepContext) -> Tensor:
        return self.reconstruct(ctx.cls)


class PointRecon(LowResRecon):
    """From the pseudo-keypoints.

    Args:
        weight, side_px: see `LowResRecon`.
        points_from: the view's "own" points, or those of the "other" view carried by the known map.
    """

    reads = frozenset({"keypoints"})
    built_last = True

    def __init__(
        self,
        *,
        weight: float | Schedule = 2.0,
        side_px: int = 24,
        points_from: str = "other",
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
