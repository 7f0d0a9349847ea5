"""The class token's own points learn to say what the patch tokens' points say.

Ours, not the paper's. Points read off the patches (soft-argmax) stay with what is visible; the
class token that names them too has to know the pose, which is what later stages read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.losses.keypoints.regression import point_spread
from handmim.types import PretrainBatch, PretrainOutputs
from handmim.utils.ranks import mean_over_ranks


class Term(nn.Module):
    """Smooth L1 towards the detached points, divided by their spread.

    Args:
        beta_ndc: where smooth L1 turns linear.
        min_sigma_ndc: floor of the spread.
    """

    needs = ("class_keypoints_ndc", "keypoints_ndc")

    def __init__(self, *, beta_ndc: float = 0.05, min_sigma_ndc: float = 0.05) -> None:
        super().__init__()
        for name, value in (("beta_ndc", beta_ndc), ("min_sigma_ndc", min_sigma_ndc)):
            if value <= 0:
                raise ValueError(
                    f"{name} must be > 0, got {value} (configs/loss/keypoint_agree.yaml)"
                )
        self.beta_ndc, self.min_sigma_ndc = beta_ndc, min_sigma_ndc

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss.

        Raises: ValueError when the two heads make different numbers of points.
        """
        assert out.class_keypoints_ndc is not None, "keypoint_agree needs the class_keypoint head"
        assert out.keypoints_ndc is not None
        mine, target = out.class_keypoints_ndc.float(), out.keypoints_ndc.detach().float()
        if mine.shape != target.shape:
            raise ValueError(
                f"the class token names {list(mine.shape[-2:])} points, the keypoint head "
                f"{list(target.shape[-2:])} (task.heads.class_keypoint, task.heads.keypoint)"
            )
        spread = point_spread(target)
        sigma = (mean_over_ranks(spread) if self.training else spread).clamp(min=self.min_sigma_ndc)
        with torch.autocast(mine.device.type, enabled=False):
            return F.smooth_l1_loss(mine, target, beta=self.beta_ndc) / sigma
