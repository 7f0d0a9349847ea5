"""Class self-distillation: the student's view must name what the teacher sees in another view.

Caron et al. 2021 (DINO, arXiv 2104.14294); the class term of iBOT (arXiv 2111.07832).
"""

from torch import Tensor, nn

from handmim.losses.soft_cross_entropy import soft_cross_entropy
from handmim.types import ClassTargets, PretrainBatch, PretrainOutputs


def cross_view_ce(classes: ClassTargets, temp: float) -> Tensor:
    """Cross-entropy from the teacher's view q to the student's view v, for all q and all v != q.

    Args:
        classes: student [B, G + L, P], the G views first, then local crops, which differ from every
            view of the teacher [B, G, P]; both in full precision, as they are made.
        temp: of the student's softmax.
    Returns: scalar, mean over the G (G + L - 1) pairs and over samples.
    Raises: ValueError for a single view without local crops.
    """
    logits, target = classes.student_logits, classes.teacher_probs
    num_seen, num_views = logits.shape[1], target.shape[1]
    if num_seen < 2:
        raise ValueError(
            "class distillation wants another view to predict: views.num_views >= 2 or "
            "views.num_local >= 1"
        )
    others = target.sum(dim=1, keepdim=True).repeat(1, num_seen, 1)
    others[:, :num_views] -= target
    ce = soft_cross_entropy(logits, others, temp).sum(dim=1)  # [B], over all pairs
    return ce.mean() / (num_views * (num_seen - 1))


class Term(nn.Module):
    """`cross_view_ce` on `PretrainOutputs.classes`.

    Args:
        student_temp: softmax temperature of the student.
    """

    needs = ("classes",)

    def __init__(self, *, student_temp: float = 0.1) -> None:
        super().__init__()
        if student_temp <= 0:
            raise ValueError(
                f"student_temp must be > 0, got {student_temp} (configs/loss/class_distill.yaml)"
            )
        self.student_temp = student_temp

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.classes is not None, "class_distill needs the projection head"
        return cross_view_ce(out.classes, self.student_temp)
