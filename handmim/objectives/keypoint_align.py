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
from handmim.types import PretrainBatch
from handmim.utils.ranks import count_over_ranks, mean_over_ranks

REGULARISERS = ("spread", "repulsion", "variance")
PARTS = {
    "reg": ("reg",),
    "regularised": ("reg", *REGULARISERS),
    "disc": ("disc",),
    "full": ("reg", "disc", *REGULARISERS),
}
SIZES = {"num_prototypes": 4096, "hidden_dim": 512, "bottleneck_dim": 256, "num_layers": 2}
MIN_STD_NDC = 0.25  # within a sample, of the spread hinge


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
    kind: str = choice("smooth_l1", "l2", "cosine")  # cosine: of all coordinates of a sample
    frame: str = choice("view", "source")  # where points are compared
    pairs: str = choice("cross", "cross+same")  # of different views, or also a view with itself
    beta_ndc: float = positive(0.05)  # where smooth L1 turns linear
    # A point that another view predicts beyond this in the student's view does not count, whatever
    # the frame; None counts all.
    limit_ndc: float | None = 1.5
    invert_scale: bool = True  # False leaves the views' sizes in, as PeCLR does, also in contrasts
    min_scale_ndc: float = positive(0.05)  # this and the next two: `RunningScale`
    detach_scale: bool = True
    scale_momentum: float | None = None
    # Contrast with the batch, or the teacher's "proto"types of one view predicted from another.
    disc: str = choice("nce", "proto", "none")
    # Shapes keep their orientation, or are rotated to their mean, which takes that shortcut from a
    # contrast.
    embed: str = choice("shape", "canonical")
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
        shapes = [self.aligned_shapes(p, ctx.batch) for p in (predicted, target.detach())]
        name, pairs = "keypoint_prototypes", [Pair(*shapes)]
        (pair,) = project(ctx, self.keypoint_prototypes, name, pairs)
        return AlignedPoints(points, predicted, target, self.class_targets(ctx, pair, name))

    def _shapes(self, source: Tensor, reference: Tensor | None = None) -> Tensor:
        if self.embed == "canonical":
            return point_sets.canonical_shapes(source, reference)
        return (source - source.mean(dim=-2, keepdim=True)).flatten(-2)

    def aligned_shapes(self, points: Tensor, batch: PretrainBatch) -> Tensor:
        """Each view's points in the source crop, without their position, as one unit vector [B, G,
        K * d], 0 for points at one location."""
        source = point_sets.in_source(points, batch, with_scale=self.invert_scale)
        return F.normalize(self._shapes(source), dim=-1)

    def regression(
        self, points: Tensor, target: Tensor, batch: PretrainBatch, scale: Tensor | float
    ) -> Tensor:
        """Distance of points from the carried points of another view, mean over ordered pairs of
        views and over all coordinates that count; `scale` divides it, twice for l2."""
        maps: dict[str, Any] = {"batch": batch, "with_scale": self.invert_scale}
        source, sync = point_sets.in_source(target, **maps), self.training
        mine = points if self.frame == "view" else point_sets.in_source(points, **maps)
        costs = []
        for shift in range(0 if self.pairs == "cross+same" else 1, points.shape[1]):
            other, in_view = source.roll(-shift, dims=1), target
            if shift and (self.frame == "view" or self.limit_ndc is not None):
                in_view = point_sets.in_views(other, **maps)
            counts = torch.ones_like(other[..., :1], dtype=torch.bool)
            if self.limit_ndc is not None:
                counts = (in_view.detach()[..., :2].abs() <= self.limit_ndc).all(-1, keepdim=True)
            other = in_view if self.frame == "view" else other
            if self.kind == "cosine":
                a, b = (torch.where(counts, x, 0.0).flatten(-2) for x in (mine, other))
                distance = 1.0 - F.cosine_similarity(a, b, dim=-1, eps=1e-6)
                is_counted = counts.any(dim=-2).squeeze(-1)
                num = count_over_ranks(is_counted.sum(), sync=sync)
                costs.append((distance * is_counted).sum() / num)
                continue
            if self.kind == "smooth_l1":
                error = F.smooth_l1_loss(mine, other, beta=self.beta_ndc, reduction="none") / scale
            else:
                error = (mine - other).square() / scale**2
            num = count_over_ranks(error.shape[-1] * counts.sum(), sync=sync)
            costs.append(torch.where(counts, error, 0.0).sum() / num)
        return torch.stack(costs).mean()

    def contrast(self, points: Tensor, target: Tensor, batch: PretrainBatch) -> Tensor:
        """`nt_xent` of shapes: another view of a sample against the other samples in that view.

        Each set loses the batch's mean shape besides its own mean: the common template would
        otherwise dominate the cosine and leave no contrast.
        """
        maps: dict[str, Any] = {"batch": batch, "with_scale": self.invert_scale}
        sync, reference, sets = self.training, None, []
        mine, other = (point_sets.in_source(p, **maps) for p in (points, target))
        if self.embed == "canonical":
            whole = point_sets.unit_shapes(other.detach())
            reference = point_sets.mean_shape(whole, sync=sync)
        for shapes in (self._shapes(mine, reference), self._shapes(other, reference)):
            template = shapes.detach().mean(dim=(0, 1), keepdim=True)
            template = mean_over_ranks(template) if sync else template
            sets.append(F.normalize(shapes - template, dim=-1))
        return point_sets.nt_xent(*sets, temp=self.nce_temp, group=batch.group, sync=sync)

    def part(self, name: str, ctx: StepContext, found: AlignedPoints) -> Tensor:
        """One part without its weight, scalar."""
        batch, sync = ctx.batch, self.training
        points, predicted, target = (p.float() for p in found[:3])
        if name == "reg":
            return self.regression(predicted, target, batch, self.running_scale(target))
        if name == "disc" and found.classes is not None:
            return cross_view_ce(found.classes, self.proto_temp)
        if name == "disc":
            return self.contrast(predicted, target, batch)
        if name == "spread":
            return F.relu(MIN_STD_NDC - point_sets.point_std(points)).square().mean()
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

    def loss(self, ctx: StepContext, prediction: None) -> Tensor:
        """Scalar. Raises: ValueError for points that are not in the plane."""
        points = ctx.keypoints.float()
        shape = points.shape[-2:]
        if shape[-1] != 2:
            raise ValueError(f"peclr rotates points in the plane, got {shape[-1]} per point")
        with torch.autocast(points.device.type, enabled=False):
            unit = F.normalize(points.flatten(-2), dim=-1).unflatten(-1, shape)
            back = undone(unit, ctx.batch.source_from_view)
            z, group = F.normalize(back.flatten(-2), dim=-1), ctx.batch.group
            return point_sets.nt_xent(
                z, z, temp=self.temp, group=group, both_views=True, sync=self.training
            )
