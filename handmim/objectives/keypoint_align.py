"""Pseudo-keypoint alignment of the class token: points of two views agree under the known map.

The paper's abstract names the module; this formulation is ours. Regression alone has three
collapses: all points at one location, a template fixed to the source image, a rigid template fixed
to the hand. So it comes with terms against each. The nearest published relative is PeCLR.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.geometry.crop import compose, invert
from handmim.models.layers import mlp
from handmim.objectives import distillation, point_sets
from handmim.objectives.base import Objective, Setup, StepContext, Targets
from handmim.objectives.distillation import ClassTargets
from handmim.objectives.keypoints import KeypointHead
from handmim.utils.arguments import above, one_of

REGULARISERS = ("spread", "repulsion", "variance")
PARTS = {
    "reg": ("reg",),
    "regularised": ("reg", *REGULARISERS),
    "disc": ("disc",),
    "full": ("reg", "disc", *REGULARISERS),
}
SIZES = {"num_prototypes": 4096, "hidden_dim": 512, "bottleneck_dim": 256, "num_layers": 2}
MIN_STD_NDC = 0.25  # within a sample, of the spread hinge


class KeypointPredictor(nn.Module):
    """A residual estimate of the other network's points; starts as the identity."""

    def __init__(self, num_keypoints: int, num_dims: int, *, hidden_dim: int = 256) -> None:
        super().__init__()
        self.mlp = mlp(num_keypoints * num_dims, hidden_dim, num_keypoints * num_dims, 1)
        nn.init.zeros_(self.mlp[-1].get_parameter("weight"))

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


class KeypointAlign(distillation.ClassObjective):
    """Regression + discrimination + terms against collapse of the shared head `keypoint`.

    Args:
        target: points are matched with those of the "ema" teacher (no gradient) or of the "student"
            itself (gradient through both views).
        predictor: the student's points pass a residual MLP before they are matched.
        parts: "reg" | "regularised" (reg and regularisers) | "disc" (alone) | "full".
        kind, frame, pairs, beta_ndc, limit_ndc, invert_scale: see `aligned_regression`; the last
            also for the contrast.
        min_scale_ndc, detach_scale, scale_momentum: see `RunningScale`.
        disc: "none" | "nce" (contrast with the batch) | "proto" (prototypes of aligned shapes, the
            teacher's of one view predicted from another).
        embed: input of "nce", "shape" | "canonical" (`aligned_shapes`).
        nce_temp, proto_temp: temperatures; of "proto" the student's.
        teacher_temp: of the targets of "proto"; None takes the task's.
        prototypes: settings of the `ProjectionHead` of "proto" that differ from `SIZES`.
        min_distance_ndc: hinge of the closest pairs.
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
        super().__init__(weight, teacher_temp)
        one_of("target", target, ("ema", "student"))
        one_of("parts", parts, tuple(PARTS))
        one_of("kind", kind, point_sets.KINDS)
        one_of("frame", frame, point_sets.FRAMES)
        one_of("pairs", pairs, point_sets.PAIRS)
        one_of("disc", disc, ("none", "nce", "proto"))
        one_of("embed", embed, point_sets.EMBEDS)
        above(0.0, beta_ndc=beta_ndc, min_scale_ndc=min_scale_ndc)
        above(0.0, nce_temp=nce_temp, proto_temp=proto_temp)
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
        self.nce_temp, self.proto_temp = nce_temp, proto_temp
        self.regression: dict[str, Any] = {"kind": kind, "frame": frame, "pairs": pairs}
        self.regression |= {"beta_ndc": beta_ndc, "limit_ndc": limit_ndc}
        self.shape: dict[str, Any] = {"embed": embed, "invert_scale": invert_scale}
        self.regression["invert_scale"] = invert_scale
        self.min_distance_ndc = min_distance_ndc
        self.running_scale = point_sets.RunningScale(
            floor_ndc=min_scale_ndc, detach=detach_scale, momentum=scale_momentum
        )
        self.has_predictor, self.from_teacher = predictor, target == "ema"
        self.prototypes: dict[str, Any] = {**SIZES, **(prototypes or {})}
        self.has_prototypes = disc == "proto" and "disc" in self.weights
        if self.from_teacher:
            self.reads = self.reads | {"teacher_keypoints"}
        if self.has_prototypes:
            self.ema = ("keypoint_prototypes",)
            self.reads = self.reads | {"teacher_cls"}

    def build(self, setup: Setup) -> None:
        head = setup.shared("keypoint")
        k, d = head.num_keypoints, head.num_dims
        if self.has_prototypes:
            self.keypoint_prototypes = distillation.ProjectionHead(k * d, **self.prototypes)
            num = self.keypoint_prototypes.num_prototypes
            self.centering = setup.centering(num_prototypes=num)
        self.predictor = KeypointPredictor(k, d) if self.has_predictor else None

    def predict(self, ctx: StepContext) -> AlignedPoints:
        points = ctx.keypoints
        predicted = points if self.predictor is None else self.predictor(points)
        target = ctx.teacher_keypoints if self.from_teacher else points
        classes = self._classes(ctx, predicted, target) if self.has_prototypes else None
        return AlignedPoints(points, predicted, target, classes)

    def _classes(self, ctx: StepContext, predicted: Tensor, target: Tensor) -> ClassTargets:
        """Prototypes of aligned shapes: another view's shape is the target."""
        shapes = [
            point_sets.aligned_shapes(points, ctx.batch, **self.shape)
            for points in (predicted, target.detach())
        ]
        name, pairs = "keypoint_prototypes", [distillation.Pair(*shapes)]
        (pair,) = distillation.project(ctx, self.keypoint_prototypes, name, pairs)
        return self.class_targets(ctx, pair, name)

    def part(self, name: str, ctx: StepContext, found: AlignedPoints) -> Tensor:
        """One part without its weight, scalar."""
        batch, sync = ctx.batch, self.training
        points, predicted, target = (p.float() for p in found[:3])
        if name == "reg":
            settings = {"scale": self.running_scale(target), "sync": sync, **self.regression}
            return point_sets.aligned_regression(predicted, target, batch, **settings)
        if name == "disc" and found.classes is not None:
            return distillation.cross_view_ce(found.classes, self.proto_temp)
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
        return {"keypoint_targets": Targets(prediction.classes.teacher_probs.flatten(0, 1))}


class KeypointAgree(Objective):
    """The class token predicts the points of the shared head `keypoint` by itself.

    Ours. Points among the patches (soft-argmax) stay with what is visible; a class token that
    predicts them has to encode the pose. Smooth L1 (linear from `beta_ndc`) towards the detached
    points, divided by their spread.
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
        self.beta_ndc, self.scale = beta_ndc, point_sets.RunningScale()
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
        scale: Tensor = self.scale(target)
        with torch.autocast(own.device.type, enabled=False):
            return F.smooth_l1_loss(own, target, beta=self.beta_ndc) / scale


def relative_affine(source_from_view: Tensor) -> Tensor:
    """Map of the next view's ndc to this view's ndc, cyclic: [B, G, 2, 3] -> [B, G, 2, 3]."""
    return compose(invert(source_from_view), source_from_view.roll(-1, dims=1))


class AffineHead(nn.Module):
    """An affine map as the identity and an MLP's estimate of the difference."""

    def __init__(self, dim: int, *, hidden_dim: int = 256) -> None:
        super().__init__()
        self.mlp = mlp(2 * dim, hidden_dim, 6, 1)
        self.register_buffer("identity", torch.eye(2, 3), persistent=False)

    def forward(self, cls_a: Tensor, cls_b: Tensor) -> Tensor:
        """[..., D] tokens of views a and b to [..., 2, 3], an estimate of a_from_b in ndc, fp32."""
        delta = self.mlp(torch.cat([cls_a, cls_b], dim=-1)).float().unflatten(-1, (2, 3))
        return self.identity + delta


class ViewAffine(Objective):
    """The known affine map between two views, regressed from both class tokens: ours, an anchor
    that no constant can satisfy. Smooth L1, linear from `beta`, mean over the six numbers."""

    def __init__(
        self, *, weight: float | Schedule = 1.0, beta: float = 0.1, hidden_dim: int = 256
    ) -> None:
        super().__init__(weight)
        self.beta, self.hidden_dim = beta, hidden_dim

    def build(self, setup: Setup) -> None:
        self.head = AffineHead(setup.dim, hidden_dim=self.hidden_dim)

    def predict(self, ctx: StepContext) -> Tensor:
        return torch.as_tensor(self.head(ctx.cls, ctx.cls.roll(-1, dims=1)))

    def loss(self, ctx: StepContext, prediction: Tensor) -> Tensor:
        target = relative_affine(ctx.batch.source_from_view)
        return F.smooth_l1_loss(prediction, target, beta=self.beta)
