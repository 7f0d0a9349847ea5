"""Pseudo-keypoint alignment of the class token: points of two views agree under the known map.

The paper's abstract names the module; this formulation is ours. Regression alone has three
collapses (all points at one location, a template fixed to the source image, a rigid template fixed
to the hand), so it comes with terms against each (`losses.point_shapes`). The nearest published
relative is PeCLR (Spurr et al. 2021, arXiv 2106.05953), which contrasts aligned points.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handmim.engine.optim import Schedule, as_schedule
from handmim.geometry.crop import to_source
from handmim.losses.aligned_points import FRAMES, KINDS, PAIRS, RunningScale, aligned_regression
from handmim.losses.point_shapes import (
    EMBEDS,
    aligned_nce,
    aligned_shapes,
    articulation_variance,
    repulsion,
    spread_hinge,
)
from handmim.models.layers import mlp
from handmim.objectives.base import (
    Objective,
    Setup,
    StepContext,
    Targets,
)
from handmim.objectives.prototypes import (
    ClassTargets,
    Pair,
    ProjectionHead,
    class_targets,
    cross_view_ce,
    project,
)
from handmim.utils.arguments import above, one_of

SIDES = ("ema", "student")
DISCS = ("none", "nce", "proto")
REGULARISERS = ("spread", "repulsion", "variance")
PARTS = {
    "reg": ("reg",),
    "regularised": ("reg", *REGULARISERS),
    "disc": ("disc",),
    "full": ("reg", "disc", *REGULARISERS),
}
PROTOTYPES: dict[str, Any] = {
    "num_prototypes": 4096,
    "hidden_dim": 512,
    "bottleneck_dim": 256,
    "num_layers": 2,
}
MIN_STD_NDC = 0.25  # within a sample, of the spread hinge
MIN_ARTICULATION_STD = 0.15  # over the batch, of the variance hinge
COVARIANCE_WEIGHT = 0.01  # of the variance hinge


class KeypointPredictor(nn.Module):
    """A residual estimate of the other network's points; starts as the identity.

    Args:
        num_keypoints, num_dims: K and d.
        hidden_dim: width of the one hidden layer.
    """

    def __init__(self, num_keypoints: int, num_dims: int, *, hidden_dim: int = 256) -> None:
        super().__init__()
        self.mlp = mlp(num_keypoints * num_dims, hidden_dim, num_keypoints * num_dims, 1)
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)

    def forward(self, points: Tensor) -> Tensor:
        """[..., K, d] to [..., K, d], fp32."""
        delta: Tensor = self.mlp(points.flatten(-2)).float()
        return points.float() + delta.unflatten(-1, points.shape[-2:])


class AlignedPoints(NamedTuple):
    """Points of all views, each in its own view's ndc."""

    points: Tensor  # [B, G, K, d] of the student
    predicted: Tensor  # [B, G, K, d] these, or the predictor's estimate of the target
    target: Tensor  # [B, G, K, d] of the network that is matched
    classes: ClassTargets | None = None  # prototypes of aligned shapes


class KeypointAlign(Objective):
    """Regression + discrimination + terms against collapse of the shared head `keypoint`.

    Args:
        weight: of the whole.
        target: points are matched with those of the "ema" teacher (no gradient) or of the "student"
            itself (gradient through both views).
        predictor: the student's points pass a residual MLP before they are matched.
        parts: which parts count: "reg" | "regularised" (reg and regularisers) | "disc" (alone, as
            in PeCLR) | "full".
        kind, frame, pairs, beta_ndc, limit_ndc: of the regression (`aligned_regression`).
        invert_scale: False leaves the views' sizes in, for regression and contrast.
        min_scale_ndc, detach_scale, scale_momentum: of the spread that divides the regression
            (`RunningScale`).
        disc: "none" | "nce" (contrast with the batch) | "proto" (prototypes of aligned shapes, the
            teacher's of one view predicted from another).
        embed: input of "nce", "shape" | "canonical" (`aligned_shapes`).
        nce_temp, proto_temp: temperatures; of "proto" the student's.
        teacher_temp: of the targets of "proto"; None takes the task's.
        prototypes: settings of the `ProjectionHead` of "proto" that differ from `PROTOTYPES`.
        reg_weight, disc_weight, spread_weight, repulsion_weight, variance_weight: of the parts.
        min_distance_ndc: hinge of the closest pairs.
    Raises: ValueError for a value that is not listed here.
    """

    reads = frozenset({"keypoints"})

    def __init__(
        self,
        *,
        weight: float | Schedule = 1.0,
        target: str = "ema",
        predictor: bool = False,
        parts: str = "full",
        kind: str = "smooth_l1",
        frame: str = "view",
        pairs: str = "cross",
        beta_ndc: float = 0.05,
        limit_ndc: float | None = 1.5,
        invert_scale: bool = True,
        min_scale_ndc: float = 0.05,
        detach_scale: bool = True,
        scale_momentum: float | None = None,
        disc: str = "nce",
        embed: str = "shape",
        nce_temp: float = 0.2,
        proto_temp: float = 0.1,
        teacher_temp: float | Schedule | None = None,
        prototypes: Mapping[str, int] | None = None,
        reg_weight: float = 1.0,
        disc_weight: float = 0.5,
        spread_weight: float = 0.1,
        repulsion_weight: float = 0.1,
        min_distance_ndc: float = 0.08,
        variance_weight: float = 0.1,
    ) -> None:
        super().__init__(weight)
        one_of("target", target, SIDES)
        one_of("parts", parts, tuple(PARTS))
        one_of("kind", kind, KINDS)
        one_of("frame", frame, FRAMES)
        one_of("pairs", pairs, PAIRS)
        one_of("disc", disc, DISCS)
        one_of("embed", embed, EMBEDS)
        above(
            0.0,
            beta_ndc=beta_ndc,
            min_scale_ndc=min_scale_ndc,
            nce_temp=nce_temp,
            proto_temp=proto_temp,
        )
        if parts == "disc" and disc == "none":
            raise ValueError("parts=disc with disc=none leaves no loss")
        weights = {
            "reg": reg_weight,
            "disc": 0.0 if disc == "none" else disc_weight,
            "spread": spread_weight,
            "repulsion": repulsion_weight,
            "variance": variance_weight,
        }
        self.weights = {name: weights[name] for name in PARTS[parts] if weights[name]}
        if not self.weights:
            raise ValueError(f"parts={parts} has no part with a weight")
        self.disc, self.embed, self.nce_temp, self.proto_temp = disc, embed, nce_temp, proto_temp
        self.teacher_temp = None if teacher_temp is None else as_schedule(teacher_temp)
        self.regression: dict[str, Any] = {
            "kind": kind,
            "frame": frame,
            "pairs": pairs,
            "beta_ndc": beta_ndc,
            "limit_ndc": limit_ndc,
        }
        self.invert_scale, self.min_distance_ndc = invert_scale, min_distance_ndc
        self.running_scale = RunningScale(
            floor_ndc=min_scale_ndc, detach=detach_scale, momentum=scale_momentum
        )
        self.has_predictor = predictor
        self.prototypes = {**PROTOTYPES, **(prototypes or {})}
        self.has_prototypes = disc == "proto" and "disc" in self.weights
        self.from_teacher = target == "ema"
        if self.from_teacher:
            self.reads = self.reads | {"teacher_keypoints"}
        if self.has_prototypes:
            self.ema = ("keypoint_prototypes",)
            self.reads = self.reads | {"teacher_cls"}

    def build(self, setup: Setup) -> None:
        head = setup.shared("keypoint")
        k, d = head.num_keypoints, head.num_dims
        if self.has_prototypes:
            self.keypoint_prototypes = ProjectionHead(k * d, **self.prototypes)
            num = self.keypoint_prototypes.num_prototypes
            self.centering = setup.centering(num_prototypes=num)
        self.predictor = KeypointPredictor(k, d) if self.has_predictor else None

    def predict(self, ctx: StepContext) -> AlignedPoints:
        points = ctx.keypoints
        predicted = points if self.predictor is None else self.predictor(points)
        target = ctx.teacher_keypoints if self.from_teacher else points
        found = AlignedPoints(points, predicted, target)
        return found._replace(classes=self._classes(ctx, found)) if self.has_prototypes else found

    def _classes(self, ctx: StepContext, found: AlignedPoints) -> ClassTargets:
        """Prototypes of aligned shapes: another view's shape is the target."""

        def shapes(points: Tensor) -> Tensor:
            scale = self.invert_scale
            return aligned_shapes(points, ctx.batch, self.embed, invert_scale=scale)

        pairs = [Pair(shapes(found.predicted), shapes(found.target.detach()))]
        heads = self.keypoint_prototypes, ctx.teacher_head("keypoint_prototypes")
        (pair,) = project(*heads, pairs, freeze_prototypes=ctx.freeze_prototypes)
        temp = ctx.teacher_temp if self.teacher_temp is None else self.teacher_temp(*ctx.info)
        return class_targets(pair, heads[1], self.centering, temp, update=self.training)

    def part(self, name: str, ctx: StepContext, found: AlignedPoints) -> Tensor:
        """One part without its weight, scalar."""
        batch, points, sync = ctx.batch, found.points.float(), self.training
        predicted, target = found.predicted.float(), found.target.float()
        if name == "reg":
            return aligned_regression(
                predicted,
                target,
                batch.source_from_view,
                batch.displacement_ndc,
                scale=self.running_scale(target),
                invert_scale=self.invert_scale,
                sync=sync,
                **self.regression,
            )
        if name == "disc" and self.disc == "proto":
            assert found.classes is not None
            return cross_view_ce(found.classes, self.proto_temp)
        if name == "disc":
            return aligned_nce(
                predicted,
                target,
                batch,
                temp=self.nce_temp,
                embed=self.embed,
                invert_scale=self.invert_scale,
                sync=sync,
            )
        if name == "spread":
            return spread_hinge(points, MIN_STD_NDC)
        if name == "repulsion":
            return repulsion(points, self.min_distance_ndc)
        # In the source: a known warp or stretch of the view is no articulation.
        in_source = to_source(points, batch.source_from_view.float(), batch.displacement_ndc)
        return articulation_variance(
            in_source.flatten(0, 1), MIN_ARTICULATION_STD, COVARIANCE_WEIGHT, sync=sync
        )

    def loss(self, ctx: StepContext, prediction: AlignedPoints) -> Tensor:
        with torch.autocast(ctx.batch.source_from_view.device.type, enabled=False):
            costs = [w * self.part(name, ctx, prediction) for name, w in self.weights.items()]
            return torch.stack(costs).sum()

    def targets(self, prediction: AlignedPoints) -> dict[str, Targets]:
        if prediction.classes is None:
            return {}
        return {"keypoint_targets": Targets(prediction.classes.teacher_probs.flatten(0, 1))}
