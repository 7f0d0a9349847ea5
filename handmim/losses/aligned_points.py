"""Alignment of points of two views under the known map between them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.geometry.crop import from_source, to_source
from handmim.utils.ranks import count_over_ranks, mean_over_ranks

KINDS = ("smooth_l1", "l2", "cosine")
FRAMES = ("view", "source")
PAIRS = ("cross", "cross+same")


def point_spread(points: Tensor) -> Tensor:
    """Mean over samples and axes of the standard deviation over points: [..., K, d] -> scalar."""
    return (points.var(dim=-2, correction=0) + 1e-8).sqrt().mean()


class RunningScale(nn.Module):
    """The spread that divides the regression, which is then blind to shrinking.

    Args:
        floor_ndc: never below this.
        detach: no gradient through it.
        momentum: of a moving average over batches, kept in the buffer `average` (0 before the first
            batch); None takes the batch's own spread. Batches are those of all processes.
    Raises: ValueError for a momentum outside [0, 1) or one with a gradient.
    """

    average: Tensor

    def __init__(
        self, *, floor_ndc: float = 0.05, detach: bool = True, momentum: float | None = None
    ) -> None:
        super().__init__()
        if momentum is not None and not 0.0 <= momentum < 1.0:
            raise ValueError(f"scale_momentum must be null or in [0, 1), got {momentum}")
        if momentum is not None and not detach:
            raise ValueError(
                "detach_scale=false requires the batch's own spread: a moving average has no "
                f"gradient (scale_momentum={momentum})"
            )
        self.floor_ndc, self.detach, self.momentum = floor_ndc, detach, momentum
        self.register_buffer("average", torch.zeros(()), persistent=momentum is not None)

    def forward(self, target_points: Tensor) -> Tensor:
        """Scalar from [..., K, d]; the average moves in training mode only."""
        spread = point_spread(target_points)
        spread = spread.detach() if self.detach else spread
        if self.training:
            spread = mean_over_ranks(spread)
        if self.momentum is not None:
            if self.training:
                is_first = self.average == 0
                self.average.lerp_(spread, torch.where(is_first, 1.0, 1.0 - self.momentum))
            # Before the first training batch there is no average: this batch's spread.
            spread = torch.where(self.average > 0, self.average, spread).clone()
        return spread.clamp(min=self.floor_ndc)


def aligned_regression(
    points: Tensor,
    target_points: Tensor,
    source_from_view: Tensor,
    displacement_ndc: Tensor | None = None,
    *,
    scale: Tensor | float,
    kind: str = "smooth_l1",
    frame: str = "view",
    pairs: str = "cross",
    beta_ndc: float = 0.05,
    limit_ndc: float | None = 1.5,
    invert_scale: bool = True,
    sync: bool = False,
) -> Tensor:
    """Distance between each view's points and the carried points of another view.

    Args:
        points: [B, G, K, d] in their own view's ndc, d = 2 or 3.
        target_points: [B, G, K, d], of the same views, from the network that is matched.
        source_from_view: [B, G, 2, 3].
        displacement_ndc: [B, G, 2, c, c] of warped views.
        scale: spread that divides the distance, twice for "l2".
        kind: "smooth_l1" | "l2" (squares) | "cosine" (1 - cosine of all coordinates of a sample
            about the image's centre; needs no scale).
        frame: compare in the "view" of `points`, or carry both to the "source" crop.
        pairs: ordered pairs of different views, or also a view with itself, which is informative
            where the target comes from another network or from whole views ("cross+same").
        beta_ndc: where smooth L1 turns linear.
        limit_ndc: a point that another view predicts beyond this in the view of `points` does not
            count, whatever the frame; None counts all.
        invert_scale: False leaves the views' sizes in, as PeCLR does.
        sync: the coordinates that count are those of all processes.
    Returns: scalar, mean over pairs and over all coordinates that count.
    """
    maps = source_from_view.float(), displacement_ndc
    in_source = to_source(target_points, *maps, with_scale=invert_scale)
    mine = points if frame == "view" else to_source(points, *maps, with_scale=invert_scale)
    costs = []
    for shift in range(0 if pairs == "cross+same" else 1, points.shape[1]):
        other = in_source.roll(-shift, dims=1)
        in_view = target_points
        if shift and (frame == "view" or limit_ndc is not None):
            in_view = from_source(other, *maps, with_scale=invert_scale)
        counts = torch.ones_like(other[..., :1], dtype=torch.bool)
        if limit_ndc is not None:
            counts = (in_view.detach()[..., :2].abs() <= limit_ndc).all(dim=-1, keepdim=True)
        other = in_view if frame == "view" else other
        costs.append(_distance(mine, other, counts, kind, beta_ndc, scale, sync))
    return torch.stack(costs).mean()


def _distance(
    mine: Tensor,
    other: Tensor,
    counts: Tensor,
    kind: str,
    beta: float,
    scale: Tensor | float,
    sync: bool,
) -> Tensor:
    """Mean over what counts: [B, G, K, d] twice, [B, G, K, 1] -> scalar."""
    if kind == "cosine":
        a, b = (torch.where(counts, x, 0.0).flatten(-2) for x in (mine, other))
        is_counted = counts.any(dim=-2).squeeze(-1)
        cosine = F.cosine_similarity(a, b, dim=-1, eps=1e-6)
        return ((1.0 - cosine) * is_counted).sum() / count_over_ranks(is_counted.sum(), sync=sync)
    if kind == "smooth_l1":
        error = F.smooth_l1_loss(mine, other, beta=beta, reduction="none") / scale
    else:
        error = (mine - other).square() / scale**2
    count = count_over_ranks(mine.shape[-1] * counts.sum(), sync=sync)
    return torch.where(counts, error, 0.0).sum() / count
