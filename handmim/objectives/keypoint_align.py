"""Pseudo-keypoint alignment of the class token: points of two views agree under the known map.

The paper's abstract names the module; this formulation is ours. Regression alone has three
collapses: all points at one location, a template fixed to the source image, a rigid template fixed
to the hand. So it comes with terms against each. The nearest published relative is PeCLR.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.geometry.crop import compose, invert
from handmim.losses.composite import choice, loss_dataclass, positive
from handmim.models.layers import mlp
from handmim.objectives import point_sets
from handmim.objectives.base import Objective, Setup, StepContext, Targets
from handmim.objectives.distillation import (
    ClassObjective,
    Pair,
    ProjectionHead,
    cross_view_ce,
    project,
)
from handmim.objectives.keypoints import KeypointHead

REGULARISERS = ("spread", "repulsion", "variance")
PARTS = {
    "reg": ("reg",),
    "regularised": ("reg", *REGULARISERS),
    "disc": ("disc",),
    "full": ("reg", "disc", *REGULARISERS),
}
SIZES = {"num_prototypes": 4096, "hidden_dim": 512, "bottleneck_dim": 256, "num_layers": 2}
MIN_STD_NDC = 0.25  # within a sample, of the spread hinge
REGRESSION = ("kind", "frame", "pairs", "beta_ndc", "limit_ndc", "invert_scale")


class AlignedPoints(NamedTuple):
    """Points of all views, each in its own view's ndc."""

    points: Tensor  # [B, G, K, d] of the student
    predicted: Tensor  # [B, G, K, d] these, or the predictor's estimate of the target
    target: Tensor  # [B, G, K, d] of the network that is matched
    classes: Pair | None = None  # prototypes of aligned shapes


@loss_dataclass
class KeypointAlign(ClassObjective):
    """Regression + discrimination + terms against collapse of the shared head `keypoint`."""

    reads = frozenset({"keypoints"})
    # The "ema" teacher's points are matched, or the "student"'s, with gradient through both views.
    target: str = choice("ema", "student")
    predictor: bool = False  # a residual MLP, which starts as the identity, estimates the target
    parts: str = choice("full", "reg", "regularised", "disc")  # the last: discrimination alone
    kind: str = choice("smooth_l1", "l2", "cosine")  # this to invert_scale: `aligned_regression`
    frame: str = choice("view", "source")
    pairs: str = choice("cross", "cross+same")
    beta_ndc: float = positive(0.05)
    limit_ndc: float | None = 1.5
    invert_scale: bool = True  # also of the contrast
    min_scale_ndc: float = positive(0.05)  # this and the next two: `RunningScale`
    detach_scale: bool = True
    scale_momentum: float | None = None
    # Contrast with the batch, or the teacher's "proto"types of one view predicted from another.
    disc: str = choice("nce", "proto", "none")
    embed: str = choice("shape", "canonical")  # see `aligned_shapes`
    nce_temp: float = positive(0.2)
    proto_temp: float = positive(0.1)  # the student's
    prototypes: Mapping[str, int] | None = None  # of the `ProjectionHead`, where unlike `SIZES`
    reg_weight: float = 1.0
    disc_weight: float = 0.5
    spread_weight: float = 0.1
    repulsion_weight: float = 0.1
    min_distance_ndc: float = 0.08  # hinge of the closest pairs
    variance_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [n for n in PARTS[self.parts] if n != "disc" or self.disc != "none"]
        weights = {name: getattr(self, f"{name}_weight") for name in names}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        if not self.weights:
            raise ValueError(f"parts={self.parts} with disc={self.disc} has no part with a weight")
        self.regression = {name: getattr(self, name) for name in REGRESSION}
        self.shape: dict[str, Any] = {"embed": self.embed, "invert_scale": self.invert_scale}
        self.running_scale = point_sets.RunningScale(
            floor_ndc=self.min_scale_ndc, detach=self.detach_scale, momentum=self.scale_momentum
        )
        self.has_prototypes = self.disc == "proto" and "disc" in self.weights
        if self.target == "ema":
            self.reads = self.reads | {"teacher_keypoints"}
        if self.has_prototypes:
            self.ema = ("keypoint_prototypes",)
            self.reads = self.reads | {"teacher_cls"}

    def build(self, setup: Setup) -> None:
        head = setup.shared("keypoint")
        width = head.num_keypoints * head.num_dims
        if self.has_prototypes:
            sizes: dict[str, Any] = {**SIZES, **(self.prototypes or {})}
            self.keypoint_prototypes = ProjectionHead(width, **sizes)
            num = self.keypoint_prototypes.num_prototypes
            self.centering = setup.centering(num_prototypes=num)
        if self.predictor:
            self.delta = mlp(width, 256, width, 1)
            nn.init.zeros_(self.delta[-1].get_parameter("weight"))

    def predict(self, ctx: StepContext) -> AlignedPoints:
        points = predicted = ctx.keypoints
        if self.predictor:
            delta: Tensor = self.delta(points.flatten(-2)).float()
            predicted = points.float() + delta.unflatten(-1, points.shape[-2:])
        target = ctx.teacher_keypoints if self.target == "ema" else points
        if not self.has_prototypes:
            return AlignedPoints(points, predicted, target)
        shapes = [
            point_sets.aligned_shapes(points, ctx.batch, **self.shape)
            for points in (predicted, target.detach())
        ]
        name, pairs = "keypoint_prototypes", [Pair(*shapes)]
        (pair,) = project(ctx, self.keypoint_prototypes, name, pairs)
        return AlignedPoints(points, predicted, target, self.class_targets(ctx, pair, name))

    def part(self, name: str, ctx: StepContext, found: AlignedPoints) -> Tensor:
        """One part without its weight, scalar."""
        batch, sync = ctx.batch, self.training
        points, predicted, target = (p.float() for p in found[:3])
        if name == "reg":
            settings = {"scale": self.running_scale(target), "sync": sync, **self.regression}
            return point_sets.aligned_regression(predicted, target, batch, **settings)
        if name == "disc" and found.classes is not None:
            return cross_view_ce(found.classes, self.proto_temp)
        if name == "disc":
            settings = {"temp": self.nce_temp, "sync": sync, **self.shape}
            return point_sets.aligned_nce(predicted, target, batch, **settings)
        if name == "spread":
            return point_sets.spread_hinge(points, MIN_STD_NDC)
        if name == "repulsion":
            return point_sets.repulsion(points, self.min_distance_ndc)
        # In the source: a known warp or stretch of the view is no articulation.
        in_source = point_sets.in_source(points, batch).flatten(0, 1)
        return point_sets.articulation_variance(in_source, sync=sync)

    def loss(self, ctx: StepContext, prediction: AlignedPoints) -> Tensor:
        with torch.autocast(ctx.batch.source_from_view.device.type, enabled=False):
            costs = [w * self.part(name, ctx, prediction) for name, w in self.weights.items()]
            return torch.stack(costs).sum()

    def targets(self, prediction: AlignedPoints) -> dict[str, Targets]:
        if prediction.classes is None:
            return {}
        return {"keypoint_targets": Targets(prediction.classes.teacher.flatten(0, 1))}


@loss_dataclass
class KeypointAgree(Objective):
    """The class token predicts the points of the shared head `keypoint` by itself.

    Ours. Points among the patches (soft-argmax) stay with what is visible; a class token that
    predicts them has to encode the pose. Smooth L1 (linear from `beta_ndc`) towards the detached
    points, divided by their spread.
    """

    reads = frozenset({"keypoints"})
    beta_ndc: float = positive(0.05)
    hidden_dim: int = 1024
    num_hidden: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scale = point_sets.RunningScale()

    def build(self, setup: Setup) -> None:
        shared = setup.shared("keypoint")
        shape = {"num_keypoints": shared.num_keypoints, "num_dims": shared.num_dims}
        sizes = {"hidden_dim": self.hidden_dim, "num_hidden": self.num_hidden}
        self.head = KeypointHead(setup.dim, **shape, **sizes)

    def predict(self, ctx: StepContext) -> Tensor:
        points: Tensor = self.head(ctx.student)
        return points.unflatten(0, ctx.shape)

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        own, target = prediction.float(), ctx.keypoints.detach().float()
        scale: Tensor = self.scale(target)
        with torch.autocast(own.device.type, enabled=False):
            return F.smooth_l1_loss(own, target, beta=self.beta_ndc) / scale


@loss_dataclass
class ViewAffine(Objective):
    """The known affine map from the next view to a view in ndc, regressed from both class tokens as
    a difference from the identity: ours, an anchor that no constant can satisfy. Smooth L1, linear
    from `beta`, mean over the six numbers."""

    beta: float = 0.1
    hidden_dim: int = 256
    identity: Tensor = field(init=False)

    def build(self, setup: Setup) -> None:
        self.mlp = mlp(2 * setup.dim, self.hidden_dim, 6, 1)
        self.register_buffer("identity", torch.eye(2, 3), persistent=False)

    def predict(self, ctx: StepContext) -> Tensor:
        """[B, G, 2, 3], fp32."""
        both = torch.cat([ctx.cls, ctx.cls.roll(-1, dims=1)], dim=-1)
        return self.identity + self.mlp(both).float().unflatten(-1, (2, 3))

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        maps = ctx.batch.source_from_view
        target = compose(invert(maps), maps.roll(-1, dims=1))
        return F.smooth_l1_loss(prediction, target, beta=self.beta)


def undone(points: Tensor, source_from_view: Tensor) -> Tensor:
    """Take each view's shift and rotation out of its latent points [B, G, K, 2], by their own range
    and about their own mean, without gradient of these. Sizes and warps are left alone."""
    maps = source_from_view.float()
    range_of = points.detach().amax(dim=-2) - points.detach().amin(dim=-2)  # [B, G, 2]
    share = invert(maps)[..., 2] / 2.0  # position of the source's centre, in sides of the view
    points = points - (share * range_of).unsqueeze(-2)
    centre = points.detach().mean(dim=-2, keepdim=True)
    linear = point_sets.linear_part(maps, with_scale=False)
    return point_sets.carried(linear, points - centre) + centre


@loss_dataclass
class PeCLR(Objective):
    """NT-Xent of the shared head `keypoint`, here unbounded latents, with a softmax temperature
    (Spurr et al. 2021, arXiv 2106.05953), approximate as published.

    Points are rotated and shifted back as their views were, then contrasted with both views of all
    other samples.
    """

    reads = frozenset({"keypoints"})
    temp: float = positive(0.5)

    def predict(self, ctx: StepContext) -> Tensor:
        return ctx.keypoints

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        """Scalar. Raises: ValueError for points that are not in the plane."""
        shape = prediction.shape[-2:]
        if shape[-1] != 2:
            raise ValueError(f"peclr rotates points in the plane, got {shape[-1]} per point")
        with torch.autocast(prediction.device.type, enabled=False):
            unit = F.normalize(prediction.float().flatten(-2), dim=-1).unflatten(-1, shape)
            back = undone(unit, ctx.batch.source_from_view)
            z, group = F.normalize(back.flatten(-2), dim=-1), ctx.batch.group
            return point_sets.nt_xent(
                z, z, temp=self.temp, group=group, both_views=True, sync=self.training
            )
