"""Masked patch self-distillation: cross-entropy from teacher to student at hidden positions.

Zhou et al. 2022 (iBOT, arXiv 2111.07832), gathered over masked positions only as in DINOv2.
"""

from torch import Tensor, nn

from handmim.losses.soft_cross_entropy import soft_cross_entropy
from handmim.types import PretrainBatch, PretrainOutputs


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


class Term(nn.Module):
    """`masked_patch_ce` on `PretrainOutputs.patches`.

    Args:
        student_temp: softmax temperature of the student.
    """

    needs = ("patches",)

    def __init__(self, *, student_temp: float = 0.1) -> None:
        super().__init__()
        if student_temp <= 0:
            raise ValueError(
                f"student_temp must be > 0, got {student_temp} (configs/loss/patch_distill.yaml)"
            )
        self.student_temp = student_temp

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.patches is not None, "patch_distill needs the projection head"
        p = out.patches
        return masked_patch_ce(
            p.student_logits, p.teacher_probs, p.weight, p.num_views, self.student_temp
        )
