"""PeCLR's contrast (Spurr et al. 2021, arXiv 2106.05953), in our words: latent points are turned
and shifted back as their views were, then views of one crop must find each other.

Kept approximate as published, for comparison: the latents are no places in the picture, so they are
turned about their own mean, shifted in proportion to their own range, and their size is left alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.geometry.crop import invert
from handmim.losses.keypoints.contrast import nt_xent
from handmim.losses.keypoints.linear import carried, linear_part
from handmim.types import PretrainBatch, PretrainOutputs


def undone(points: Tensor, source_from_view: Tensor) -> Tensor:
    """Take each view's shift and rotation out of its latent points.

    Args:
        points: [B, G, K, 2] latents of any size.
        source_from_view: [B, G, 2, 3]; warps are not undone.
    Returns: [B, G, K, 2]; means and ranges carry no gradient.
    """
    maps = source_from_view.float()
    range_of = points.detach().amax(dim=-2) - points.detach().amin(dim=-2)  # [B, G, 2]
    share = invert(maps)[..., 2] / 2.0  # where the source's centre went, in sides of the view
    points = points - (share * range_of).unsqueeze(-2)
    centre = points.detach().mean(dim=-2, keepdim=True)
    return carried(linear_part(maps, with_scale=False), points - centre) + centre


def unit(points: Tensor) -> Tensor:
    """All coordinates of a set as one vector of length 1: [..., K, 2] -> the same."""
    return F.normalize(points.flatten(-2), dim=-1).unflatten(-1, points.shape[-2:])


class Term(nn.Module):
    """NT-Xent on `PretrainOutputs.keypoints_ndc`, here unbounded latents rather than places; both
    views of all other samples are negatives.

    Args:
        temp: softmax temperature.
    """

    needs = ("keypoints_ndc",)

    def __init__(self, *, temp: float = 0.5) -> None:
        super().__init__()
        if temp <= 0:
            raise ValueError(f"temp must be > 0, got {temp} (configs/loss/peclr.yaml)")
        self.temp = temp

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss.

        Raises: ValueError for points that are not in the plane.
        """
        assert out.keypoints_ndc is not None, "peclr needs the keypoint head"
        points = out.keypoints_ndc.float()
        if points.shape[-1] != 2:
            raise ValueError(
                f"peclr turns points in the plane, got {points.shape[-1]} numbers per point "
                "(task.heads.keypoint)"
            )
        with torch.autocast(points.device.type, enabled=False):
            z = unit(undone(unit(points), batch.source_from_view)).flatten(-2)
            return nt_xent(
                z, z, temp=self.temp, group=batch.group, both_views=True, sync=self.training
            )
