"""Class and patch distillation together are iBOT: three optimiser steps equal a reference that runs
heads on all tokens, with every schedule moving and the prototypes frozen at first."""

from functools import partial

import pytest
import torch
from torch.func import functional_call

from handmim.engine.optim import OptimizerConfig, Schedule
from handmim.models.teacher import Centering
from handmim.models.vit import ViT
from handmim.objectives.distillation import ClassDistill, PatchDistill, ProjectionHead
from handmim.tasks.pretrain import HandMimTask
from handmim.types import PretrainBatch, StepInfo
from tests.golden import reference_ibot as reference

STEPS, SIDE, PATCH = 3, 32, 8
# By hand: linear warm-up over three steps; half cosines at 0, 1/2 and 1.
KNOBS = [
    reference.Knobs(2e-3, 0.04, 0.9, 0.05, 0.05, frozen=True),
    reference.Knobs(2e-3, 0.22, 0.945, 0.06, 0.06, frozen=False),
    reference.Knobs(2e-3, 0.4, 0.99, 0.07, 0.07, frozen=False),
]
RECIPE = OptimizerConfig(
    make=partial(torch.optim.AdamW, betas=(0.9, 0.999), eps=1e-8),
    lr=2e-3,
    weight_decay=Schedule(start=0.04, end=0.4),
)


def make_task(over="all", **of_classes) -> HandMimTask:
    """In double precision, where sums in another order are the same."""
    torch.manual_seed(0)
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    task = HandMimTask(
        ViT("vit_tiny_patch16_224", img_px=SIDE, patch_px=PATCH, size=size),
        {"patch_distill": PatchDistill(), "class_distill": ClassDistill(**of_classes)},
        {"projection": partial(ProjectionHead, num_prototypes=12, hidden_dim=16, bottleneck_dim=8)},
        centering=partial(Centering, over=over),
        momentum=Schedule(start=0.9, end=0.99),
        teacher_temp=Schedule(start=0.07, warmup_start=0.04, warmup_steps=STEPS),
        freeze_prototypes_steps=1,
    )
    with torch.no_grad():  # away from a teacher that equals its student, and from small logits
        for p in task.followed().parameters():
            p.add_(0.1 * torch.randn_like(p))
    return task.double().train()


def make_batch(step: int, *, num_local: int = 0, masked: bool = True) -> PretrainBatch:
    """Three crops; one view has no mask, the others hide 2 to 9 of 16 patches."""
    g = torch.Generator().manual_seed(step)
    views = torch.rand(3, 2, 3, SIDE, SIDE, generator=g, dtype=torch.float64)
    masks = (
        torch.rand(3, 2, 16, generator=g).argsort(-1)
        < torch.tensor([[2, 9], [5, 0], [3, 4]])[..., None]
    )
    side = SIDE // 2
    local = torch.rand(3, num_local, 3, side, side, generator=g, dtype=torch.float64)
    return PretrainBatch(
        views,
        torch.eye(2, 3).expand(3, 2, 2, 3),
        masks & masked,
        local_views=local if num_local else None,
    )


def copied(modules: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in modules.named_parameters()}


def as_reference(task: HandMimTask) -> reference.State:
    centres = [task.each[f"{kind}_distill"].centering.centre for kind in ("class", "patch")]
    centres = [centre.clone() for centre in centres]
    return reference.State(copied(task.followed()), copied(task.teacher.net), *centres)


def our_step(task, optimizer, batch, info) -> dict[str, float]:
    """As the loop does it."""
    RECIPE.apply(optimizer, info.step, info.total_steps, batch_size=1)
    result = task(batch, info)
    result.loss.backward()
    task.before_update(info)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    task.after_step(info)
    return {k: float(v) for k, v in result.scalars.items()}


def assert_same(mine: dict, theirs: dict, atol: float) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=atol, rtol=0, msg=name)


def assert_equals_ibot(over="all", masked=True, num_local=0, knobs=KNOBS, **kwargs) -> HandMimTask:
    """Three steps of both; the task as it is then."""
    task = make_task(over, **kwargs)
    vit = task.student["backbone"]

    def backbone(weights, views, masks):
        tokens = functional_call(vit, weights, (views, masks))
        return tokens.cls, tokens.patches

    state, first = as_reference(task), copied(task.followed())
    optimizer = RECIPE.build(task, task.lr_scales())
    for step in range(STEPS):
        batch = make_batch(step, num_local=num_local, masked=masked)
        scalars = our_step(task, optimizer, batch, StepInfo(step, STEPS))
        class_loss, patch_loss = reference.step(
            state, backbone, batch.views, batch.is_masked, batch.local_views, knobs[step], over
        )
        assert scalars["loss/class_distill"] == pytest.approx(class_loss, abs=1e-5)
        assert scalars["loss/patch_distill"] == pytest.approx(patch_loss, abs=1e-5)
        assert scalars["loss"] == pytest.approx(class_loss + patch_loss, abs=1e-5)
        frozen = knobs[step].frozen
        moved = task.student["projection"].prototypes - first["projection.prototypes"]
        assert bool(moved.abs().max() == 0) is frozen
        assert_same(copied(task.followed()), state.student, atol=1e-5)
        assert_same(copied(task.teacher.net), state.teacher, atol=1e-5)
        centres = {"class_distill": state.class_centre, "patch_distill": state.patch_centre}
        assert_same({k: o.centering.centre for k, o in task.each.items()}, centres, atol=1e-6)
    return task


@pytest.mark.parametrize("over", ["all", "masked"])
@pytest.mark.parametrize("head", ["shared", "own"])
def test_three_steps_equal_ibot_over_all_tokens(over, head):
    task = assert_equals_ibot(over, head=head)
    assert ("class_projection" in task.followed()) is (head == "own")
    of_classes, of_patches = (o.centering.centre for o in task.each.values())
    assert of_classes.abs().max() > 1e-3
    assert of_patches.abs().max() > 1e-3
    assert (of_classes - of_patches).abs().max() > 1e-3


def test_local_crops_predict_every_view():
    assert_equals_ibot(num_local=2)


def test_class_targets_may_have_their_own_temperature():
    knobs = [reference.Knobs(**{**k.__dict__, "class_temp": 0.04}) for k in KNOBS]
    assert_equals_ibot(teacher_temp=0.04, knobs=knobs)


@pytest.mark.parametrize(("over", "moves"), [("all", True), ("masked", False)])
def test_nothing_masked_moves_only_a_centre_over_all_patches(over, moves):
    task = assert_equals_ibot(over, masked=False)
    assert bool(task.each["patch_distill"].centering.centre.abs().max() > 0) is moves


def test_the_schedules_are_those_of_the_reference():
    task = make_task()
    for step, knobs in enumerate(KNOBS):
        assert task.teacher_temp(step, STEPS) == pytest.approx(knobs.patch_temp)
        assert task.momentum(step, STEPS) == pytest.approx(knobs.momentum)
        ctx = task.encode(make_batch(0), StepInfo(step, STEPS))
        assert ctx.freeze_prototypes is knobs.frozen


def test_evaluation_moves_no_centre():
    task = make_task().eval()
    task(make_batch(0), StepInfo(0, STEPS))
    assert all(o.centering.centre.abs().max() == 0 for o in task.each.values())
