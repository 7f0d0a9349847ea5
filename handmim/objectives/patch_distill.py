"""Masked patch self-distillation: cross-entropy from teacher to student at masked positions.

Zhou et al. 2022 (iBOT, arXiv 2111.07832), gathered over masked positions only as in DINOv2.
"""

from torch import Tensor

from handmim.engine.optim import Schedule
from handmim.objectives.base import Objective, Setup, StepContext, Targets
from handmim.objectives.prototypes import (
    PatchTargets,
    patch_targets,
    projected,
    soft_cross_entropy,
)
from handmim.utils.arguments import above


def masked_patch_ce(
    student_logits: Tensor, teacher_probs: Tensor, weight: Tensor, num_views: int, temp: float
) -> Tensor:
    """Mean cross-entropy per masked patch, averaged in each view first, then over all views.

    Args:
        student_logits: [M, P] of the masked patches of all views, in full precision.
        teacher_probs: [M, P] likewise, rows sum to 1.
        weight: [M], 1 / (masked patches of that view).
        num_views: views in the batch, also those without a mask: they count as 0.
        temp: student temperature.
    Returns: scalar; 0 with its graph intact when nothing is masked.
    """
    ce = soft_cross_entropy(student_logits, teacher_probs, temp)  # [M]
    return (ce * weight).sum() / num_views


class PatchDistill(Objective):
    """`masked_patch_ce` of the shared head `projection`.

    Args:
        weight: of the loss.
        student_temp: softmax temperature of the student.
    """

    reads = frozenset({"projected_patches", "masked_patches", "teacher_masked_patches"})

    def __init__(self, *, weight: float | Schedule = 1.0, student_temp: float = 0.1) -> None:
        super().__init__(weight)
        above(0.0, student_temp=student_temp)
        self.student_temp = student_temp

    def build(self, setup: Setup) -> None:
        self.centering = setup.centering(num_prototypes=setup.shared("projection").num_prototypes)
        if getattr(self.centering, "over", "") == "all":
            self.reads = self.reads | {"teacher_patches", "all_projected_patches"}

    def predict(self, ctx: StepContext) -> PatchTargets:
        return patch_targets(
            projected(ctx)["projected_patches"],
            ctx.teacher_head("projection"),
            self.centering,
            ctx.is_masked,
            ctx.batch.masked_idx,
            ctx.teacher_temp,
            update=self.training,
        )

    def loss(self, ctx: StepContext, prediction: PatchTargets) -> Tensor:
        return masked_patch_ce(*prediction, temp=self.student_temp)

    def targets(self, prediction: PatchTargets) -> dict[str, Targets]:
        logits, probs, *_ = prediction
        return {"targets": Targets(probs, logits, self.student_temp)}
