"""The class token predicts the points of the shared head `keypoint` by itself.

Ours, not the paper's. Points that are found among the patches (soft-argmax) stay with what is
visible; a class token that predicts them too has to encode the pose, which later stages read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.losses.aligned_points import point_spread
from handmim.objectives.base import Objective, Setup, StepContext
from handmim.objectives.keypoints import KeypointHead
from handmim.utils.arguments import above
from handmim.utils.ranks import mean_over_ranks

MIN_SCALE_NDC = 0.05  # floor of the spread that divides the error


class KeypointAgree(Objective):
    """Smooth L1 towards the detached points, divided by their spread.

    Args:
        weight: of the loss.
        beta_ndc: where smooth L1 becomes linear.
        hidden_dim, num_hidden: of the class token's `KeypointHead`.
    """

    reads = frozenset({"keypoints"})

    def __init__(
        self,
        *,
        weight: float | Schedule = 1.0,
        beta_ndc: float = 0.05,
        hidden_dim: int = 1024,
        num_hidden: int = 2,
    ) -> None:
        super().__init__(weight)
        above(0.0, beta_ndc=beta_ndc)
        self.beta_ndc = beta_ndc
        self.sizes = {"hidden_dim": hidden_dim, "num_hidden": num_hidden}

    def build(self, setup: Setup) -> None:
        shared = setup.shared("keypoint")
        shape = {"num_keypoints": shared.num_keypoints, "num_dims": shared.num_dims}
        self.head = KeypointHead(setup.dim, **shape, **self.sizes)

    def predict(self, ctx: StepContext) -> Tensor:
        points: Tensor = self.head(ctx.student)
        return points.unflatten(0, ctx.shape)

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        own, target = prediction.float(), ctx.keypoints.detach().float()
        spread = point_spread(target)
        scale = (mean_over_ranks(spread) if self.training else spread).clamp(min=MIN_SCALE_NDC)
        with torch.autocast(own.device.type, enabled=False):
            return F.smooth_l1_loss(own, target, beta=self.beta_ndc) / scale
