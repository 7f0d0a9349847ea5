"""PeCLR (Spurr et al. 2021, arXiv 2106.05953), approximate as published: latent points are rotated
and shifted back as their views were, then views of one crop are contrasted with those of others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.geometry.crop import invert, scale_of
from handmim.models.layers import BatchNorm1d
from handmim.objectives.base import Objective, StepContext
from handmim.objectives.keypoints import check_points
from handmim.objectives.point_sets import nt_xent
from handmim.types import Tokens
from handmim.utils.arguments import above


def linear_part(source_from_view: Tensor, *, with_scale: bool) -> Tensor:
    """[..., 2, 3] to [..., 2, 2]: rotation, stretch and flip of a map, without scale divided by
    sqrt|det|."""
    linear = source_from_view[..., :2].float()
    if with_scale:
        return linear
    return linear / scale_of(linear)[..., None, None]


def carried(linear: Tensor, vectors: Tensor) -> Tensor:
    """[..., 2, 2] applied to [..., P, 2] vectors, in the precision of its inputs."""
    return (linear.unsqueeze(-3) * vectors.unsqueeze(-2)).sum(dim=-1)


def undone(points: Tensor, source_from_view: Tensor) -> Tensor:
    """Take each view's shift and rotation out of its latent points [B, G, K, 2], by their own range
    and about their own mean, without gradient of these. Sizes and warps are left alone."""
    maps = source_from_view.float()
    range_of = points.detach().amax(dim=-2) - points.detach().amin(dim=-2)  # [B, G, 2]
    share = invert(maps)[..., 2] / 2.0  # position of the source's centre, in sides of the view
    points = points - (share * range_of).unsqueeze(-2)
    centre = points.detach().mean(dim=-2, keepdim=True)
    return carried(linear_part(maps, with_scale=False), points - centre) + centre


def unit(points: Tensor) -> Tensor:
    """All coordinates of a set as one vector of length 1: [..., K, 2] -> the same."""
    return F.normalize(points.flatten(-2), dim=-1).unflatten(-1, points.shape[-2:])


class LatentPoints(nn.Module):
    """PeCLR's projection: the class token as K unbounded points of a latent plane, with batch
    statistics of all processes. All views have to be whole (nothing masked)."""

    num_dims = 2

    def __init__(
        self, dim: int, *, num_keypoints: int = 64, hidden_dim: int = 512, num_hidden: int = 1
    ) -> None:
        super().__init__()
        check_points(num_keypoints, self.num_dims)
        self.num_keypoints = num_keypoints
        layers: list[nn.Module] = []
        for _ in range(num_hidden):
            layers += [nn.Linear(dim, hidden_dim), BatchNorm1d(hidden_dim), nn.ReLU()]
            dim = hidden_dim
        self.project = nn.Sequential(*layers, nn.Linear(dim, num_keypoints * 2))

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens of [V, D] to [V, K, 2] latents, fp32."""
        return self.project(tokens.cls).float().unflatten(-1, (self.num_keypoints, 2))


class PeCLR(Objective):
    """NT-Xent of the shared head `keypoint`, here unbounded latents; both views of all other
    samples are negatives. `temp` is the softmax temperature."""

    reads = frozenset({"keypoints"})

    def __init__(self, *, weight: float | Schedule = 1.0, temp: float = 0.5) -> None:
        super().__init__(weight)
        above(0.0, temp=temp)
        self.temp = temp

    def predict(self, ctx: StepContext) -> Tensor:
        return ctx.keypoints

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Scalar. Raises: ValueError for points that are not in the plane."""
        points = prediction.float()
        if points.shape[-1] != 2:
            raise ValueError(
                f"peclr rotates points in the plane, got {points.shape[-1]} numbers per point"
            )
        with torch.autocast(points.device.type, enabled=False):
            z = unit(undone(unit(points), ctx.batch.source_from_view)).flatten(-2)
            group = ctx.batch.group
            return nt_xent(z, z, temp=self.temp, group=group, both_views=True, sync=self.training)
