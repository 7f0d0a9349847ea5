"""Class self-distillation: the student predicts from a view the teacher's targets of another.

Caron et al. 2021 (DINO, arXiv 2104.14294); the class term of iBOT (arXiv 2111.07832).
"""

from torch import Tensor

from handmim.engine.optim import Schedule, as_schedule
from handmim.objectives.base import (
    Objective,
    Setup,
    StepContext,
    Targets,
)
from handmim.objectives.prototypes import (
    ClassTargets,
    class_pair,
    class_targets,
    cross_view_ce,
    project,
    projected,
)
from handmim.utils.arguments import above, one_of

HEADS = ("shared", "own")


class ClassDistill(Objective):
    """`cross_view_ce` of a prototype head. Local crops, if any, predict every view.

    Args:
        weight: of the loss.
        head: "shared" with masked patches, or an "own" one of the same sizes.
        student_temp: softmax temperature of the student.
        teacher_temp: of the targets; None takes the task's.
    """

    reads = frozenset({"projected_cls", "local_cls", "teacher_cls"})

    def __init__(
        self,
        *,
        weight: float | Schedule = 1.0,
        head: str = "shared",
        student_temp: float = 0.1,
        teacher_temp: float | Schedule | None = None,
    ) -> None:
        super().__init__(weight)
        one_of("head", head, HEADS)
        above(0.0, student_temp=student_temp)
        self.student_temp = student_temp
        self.teacher_temp = None if teacher_temp is None else as_schedule(teacher_temp)
        self.has_own_head = head == "own"
        if self.has_own_head:
            self.reads = self.reads - {"projected_cls"}
            self.ema = ("class_projection",)

    def build(self, setup: Setup) -> None:
        if self.has_own_head:
            self.class_projection = setup.make_head("projection")
        head = self.class_projection if self.has_own_head else setup.shared("projection")
        self.centering = setup.centering(num_prototypes=head.num_prototypes)

    def predict(self, ctx: StepContext) -> ClassTargets:
        if self.has_own_head:
            teacher_head = ctx.teacher_head("class_projection")
            frozen = ctx.freeze_prototypes
            pairs = [class_pair(ctx)]
            (pair,) = project(self.class_projection, teacher_head, pairs, freeze_prototypes=frozen)
        else:
            teacher_head = ctx.teacher_head("projection")
            pair = projected(ctx)["projected_cls"]
        temp = ctx.teacher_temp if self.teacher_temp is None else self.teacher_temp(*ctx.info)
        return class_targets(pair, teacher_head, self.centering, temp, update=self.training)

    def loss(self, ctx: StepContext, prediction: ClassTargets) -> Tensor:
        return cross_view_ce(prediction, self.student_temp)

    def targets(self, prediction: ClassTargets) -> dict[str, Targets]:
        return {"class_targets": Targets(prediction.teacher_probs.flatten(0, 1))}
