"""Pseudo-keypoint alignment of the class token: points of two views must agree under the known map.

The paper's abstract names the module; this formulation is ours. Regression alone has three
collapses (all points on one spot, a template fixed to the source picture, a rigid template locked
to the hand), so it comes with terms against each (`losses.keypoints`). The nearest published
relative is PeCLR (Spurr et al. 2021, arXiv 2106.05953), which contrasts aligned points.
"""

import torch
from torch import Tensor, nn

from handmim.geometry.warp import to_source
from handmim.losses.class_distill import cross_view_ce
from handmim.losses.keypoints.contrast import EMBEDS, aligned_nce
from handmim.losses.keypoints.regression import FRAMES, KINDS, PAIRS, Sigma, aligned_regression
from handmim.losses.keypoints.regularisers import articulation_variance, repulsion, spread_hinge
from handmim.types import PretrainBatch, PretrainOutputs

DISCS = ("none", "nce", "proto")
REGULARISERS = ("spread", "repulsion", "variance")
PARTS = {
    "reg": ("reg",),
    "regularised": ("reg", *REGULARISERS),
    "disc": ("disc",),
    "full": ("reg", "disc", *REGULARISERS),
}
CONFIG = "configs/loss/keypoint_align.yaml"


class Term(nn.Module):
    """Regression + discrimination + terms against collapse, weighted inside so that one weight
    switches the module.

    Args:
        parts: which of them count: "reg" | "regularised" (reg and regularisers) | "disc" (alone,
            as PeCLR has it) | "full".
        kind, frame, pairs, beta_ndc, limit_ndc: of the regression (`aligned_regression`).
        invert_scale: False leaves the views' sizes in, for regression and contrast.
        min_sigma_ndc, detach_sigma, sigma_momentum: of the spread dividing it (`Sigma`).
        disc: "none" | "nce" (contrast with the batch) | "proto" (prototypes of aligned shapes,
            which need the head `keypoint_prototypes`).
        embed: what "nce" looks at, "shape" | "canonical" (`aligned_shapes`).
        nce_temp, proto_temp: temperatures; of "proto" the student's.
        reg_weight, disc_weight, spread_weight, repulsion_weight, variance_weight: parts.
        min_std_ndc, min_distance_ndc: hinges on spread within a sample and on the closest pairs.
        min_articulation_std, covariance_weight: hinge on articulation over the batch.
    Raises: ValueError for a value that is not listed here.
    """

    def __init__(
        self,
        *,
        parts: str = "full",
        kind: str = "smooth_l1",
        frame: str = "view",
        pairs: str = "cross",
        beta_ndc: float = 0.05,
        limit_ndc: float | None = 1.5,
        invert_scale: bool = True,
        min_sigma_ndc: float = 0.05,
        detach_sigma: bool = True,
        sigma_momentum: float | None = None,
        disc: str = "nce",
        embed: str = "shape",
        nce_temp: float = 0.2,
        proto_temp: float = 0.1,
        reg_weight: float = 1.0,
        disc_weight: float = 0.5,
        spread_weight: float = 0.1,
        min_std_ndc: float = 0.25,
        repulsion_weight: float = 0.1,
        min_distance_ndc: float = 0.08,
        variance_weight: float = 0.1,
        min_articulation_std: float = 0.15,
        covariance_weight: float = 0.01,
    ) -> None:
        super().__init__()
        for name, value, valid in (
            ("parts", parts, tuple(PARTS)),
            ("kind", kind, KINDS),
            ("frame", frame, FRAMES),
            ("pairs", pairs, PAIRS),
            ("disc", disc, DISCS),
            ("embed", embed, EMBEDS),
        ):
            if value not in valid:
                raise ValueError(f"{name} must be one of {valid}, got {value!r} ({CONFIG})")
        for name, number in (
            ("beta_ndc", beta_ndc),
            ("min_sigma_ndc", min_sigma_ndc),
            ("nce_temp", nce_temp),
            ("proto_temp", proto_temp),
        ):
            if number <= 0:
                raise ValueError(f"{name} must be > 0, got {number} ({CONFIG})")
        if parts == "disc" and disc == "none":
            raise ValueError(f"parts=disc with disc=none leaves no loss ({CONFIG})")
        self.kind, self.frame, self.pairs, self.beta_ndc = kind, frame, pairs, beta_ndc
        self.limit_ndc, self.invert_scale = limit_ndc, invert_scale
        self.sigma = Sigma(floor_ndc=min_sigma_ndc, detach=detach_sigma, momentum=sigma_momentum)
        self.disc, self.embed = disc, embed
        self.nce_temp, self.proto_temp = nce_temp, proto_temp
        self.min_std_ndc, self.min_distance_ndc = min_std_ndc, min_distance_ndc
        self.min_articulation_std = min_articulation_std
        self.covariance_weight = covariance_weight
        weights = {
            "reg": reg_weight,
            "disc": 0.0 if disc == "none" else disc_weight,
            "spread": spread_weight,
            "repulsion": repulsion_weight,
            "variance": variance_weight,
        }
        self.weights = {name: weights[name] for name in PARTS[parts] if weights[name]}
        if not self.weights:
            raise ValueError(f"parts={parts} has no part with a weight ({CONFIG})")
        self.needs: tuple[str, ...] = (
            "keypoints_ndc",
            "predicted_keypoints_ndc",
            "target_keypoints_ndc",
        )
        if disc == "proto" and "disc" in self.weights:
            self.needs = (*self.needs, "keypoint_classes")

    def part(self, name: str, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """One part without its weight, scalar."""
        assert out.keypoints_ndc is not None, "keypoint_align needs the keypoint head"
        assert out.predicted_keypoints_ndc is not None
        assert out.target_keypoints_ndc is not None
        points, target = out.keypoints_ndc.float(), out.target_keypoints_ndc.float()
        guess = out.predicted_keypoints_ndc.float()
        if name == "reg":
            return aligned_regression(
                guess,
                target,
                batch.source_from_view,
                batch.displacement_ndc,
                sigma=self.sigma(target),
                kind=self.kind,
                frame=self.frame,
                pairs=self.pairs,
                beta_ndc=self.beta_ndc,
                limit_ndc=self.limit_ndc,
                invert_scale=self.invert_scale,
                sync=self.training,
            )
        if name == "disc" and self.disc == "proto":
            assert out.keypoint_classes is not None, "disc=proto needs keypoint_prototypes"
            return cross_view_ce(out.keypoint_classes, self.proto_temp)
        if name == "disc":
            return aligned_nce(
                guess,
                target,
                batch,
                temp=self.nce_temp,
                embed=self.embed,
                invert_scale=self.invert_scale,
                sync=self.training,
            )
        if name == "spread":
            return spread_hinge(points, self.min_std_ndc)
        if name == "repulsion":
            return repulsion(points, self.min_distance_ndc)
        # In the source: a known warp or stretch of the view must not pass for articulation.
        in_source = to_source(points, batch.source_from_view.float(), batch.displacement_ndc)
        return articulation_variance(
            in_source.flatten(0, 1),
            self.min_articulation_std,
            self.covariance_weight,
            sync=self.training,
        )

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        with torch.autocast(batch.source_from_view.device.type, enabled=False):
            costs = [w * self.part(name, out, batch) for name, w in self.weights.items()]
            return torch.stack(costs).sum()
