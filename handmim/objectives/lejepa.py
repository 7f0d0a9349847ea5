"""LeJEPA: embeddings of all views predict their mean, and SIGReg makes them isotropic Gaussian.

No teacher and no stopped gradient (Balestriero and LeCun 2025, arXiv 2511.08544). SIGReg acts on
other tokens too, in place of several terms against collapse.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.losses.composite import choice, loss_dataclass, positive
from handmim.objectives.base import Objective, StepContext
from handmim.objectives.distillation import class_tokens
from handmim.objectives.point_sets import canonical_shapes, in_source
from handmim.utils.arguments import at_least
from handmim.utils.ranks import from_first_rank, mean_over_ranks, sum_over_ranks

READS_OF = {
    "cls": {"local_cls"},
    "embedding": {"embedded_cls", "local_cls"},
    "patches": {"visible_patches"},  # those that the student has; masked ones too where it does
    "keypoints": {"keypoints"},
}


def embeddings(ctx: StepContext) -> Tensor:
    """[B, G + L, E] class tokens of views, then of local crops, after the shared head `embedding`,
    fp32; reads "embedded_cls" and "local_cls"."""
    return ctx.once("embeddings", lambda: ctx.heads["embedding"](class_tokens(ctx)).float())


class ViewMean(Objective):
    """Squared distance of each embedding from the mean of the whole views', with gradient through
    both: LeJEPA's prediction, mean over samples, views, local crops and channels."""

    reads = frozenset({"embedded_cls", "local_cls"})

    def predict(self, ctx: StepContext) -> Tensor:
        return embeddings(ctx)

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        centre = prediction[:, : ctx.shape[1]].mean(dim=1, keepdim=True)
        return (prediction - centre).square().mean()


def epps_pulley(
    samples: Tensor,
    num_knots: int = 17,
    max_t: float = 3.0,
    *,
    num_samples: int | None = None,
    sync: bool = False,
) -> Tensor:
    """Statistic of Epps and Pulley (1983) against the standard normal distribution:

    n * integral of |mean exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) over t in [-max_t, max_t], by
    the trapezoidal rule. Samples of a standard normal give about 1.06 for any n.

    Args:
        samples: [n, ...], the first axis counts.
        num_knots: of the half with t >= 0; the integrand is even.
        num_samples: the factor n; None takes the number of samples.
        sync: samples of all processes, with their gradients.
    Returns: [...].
    """
    t = torch.linspace(0.0, max_t, num_knots, device=samples.device, dtype=samples.dtype)
    normal, angle = (-0.5 * t.square()).exp(), samples.unsqueeze(-1) * t
    parts = torch.stack([angle.cos(), angle.sin()]).mean(dim=1)  # [2, ..., num_knots]
    count = samples.new_full((), len(samples))
    if sync:
        parts, count = mean_over_ranks(parts), sum_over_ranks(count)
    error = (parts[0] - normal).square() + parts[1].square()
    integral = 2.0 * torch.trapezoid(error * normal, t, dim=-1)
    return integral * (count if num_samples is None else num_samples)


@loss_dataclass
class SigReg(Objective):
    """`epps_pulley` of projections on random directions, mean over these and over views.

    Of class tokens "cls"; of the shared head `embedding` (LeJEPA); of "patches", all of a view's
    together; of "keypoints": articulation, the shapes in the source crop without position, size,
    orientation and the batch's mean, in units of `keypoint_std`. Every step draws its directions,
    the same on all processes.
    """

    weight: float | Schedule = 0.02
    of: str = choice("cls", "embedding", "patches", "keypoints")
    num_slices: int = 256
    num_knots: int = 17
    max_t: float = positive(3.0)
    # Factor of the statistic; None is the number of samples, with which the loss then grows.
    num_samples: int | None = None
    keypoint_std: float = positive(0.15)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, num_slices=self.num_slices)
        at_least(2, num_knots=self.num_knots)
        if self.num_samples is not None:
            at_least(1, num_samples=self.num_samples)
        self.reads = frozenset(READS_OF[self.of])

    def predict(self, ctx: StepContext) -> Tensor:
        """Classes or embeddings [B, G + L, D], patches [B, G, N, D], or points [B, G, K, d]."""
        if self.of == "keypoints":
            return ctx.keypoints
        if self.of == "patches":
            return ctx.patches
        return embeddings(ctx) if self.of == "embedding" else class_tokens(ctx)

    def shapes(self, points: Tensor, ctx: StepContext) -> Tensor:
        """[B, G, K * d] of points [B, G, K, d], less their mean."""
        q = canonical_shapes(in_source(points, ctx.batch), sync=self.training)
        mean = q.mean(dim=(0, 1))
        return (q - (mean_over_ranks(mean) if self.training else mean)) / self.keypoint_std

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        with torch.autocast(prediction.device.type, enabled=False):
            rows = prediction.float()
            if self.of == "keypoints":
                rows = self.shapes(rows, ctx)
            elif self.of == "patches":
                rows = rows.transpose(1, 2).flatten(0, 1)  # [B * N, G, D]
            slices = torch.randn(rows.shape[-1], self.num_slices, device=rows.device)
            slices = from_first_rank(slices) if self.training else slices
            along = rows @ F.normalize(slices, dim=0)  # [n, views, num_slices]
            rule = self.num_knots, self.max_t
            factor, sync = self.num_samples, self.training
            return epps_pulley(along, *rule, num_samples=factor, sync=sync).mean()
