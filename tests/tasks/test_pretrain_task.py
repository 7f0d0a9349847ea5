from functools import partial

import pytest
import torch

from handmim.data.pixels import ColourJitter
from handmim.data.views import MaskSampler, ViewMaker
from handmim.diagnostics.collapse import effective_rank
from handmim.engine.log import draw
from handmim.engine.optim import Schedule
from handmim.models.layers import BatchNormMlp
from handmim.models.teacher import Centering, Sinkhorn
from handmim.models.vit import ViT
from handmim.models.weights.load import load_initial
from handmim.objectives.base import Targets
from handmim.objectives.distillation import ClassDistill, Koleo, PatchDistill, ProjectionHead
from handmim.objectives.experimental import (
    ClassRecon,
    DenseMatch,
    LatentEquivariance,
    PointRecon,
    ViewFlow,
)
from handmim.objectives.hog import ClassHog, PatchHog, PointHog
from handmim.objectives.keypoint_align import KeypointAgree, KeypointAlign, ViewAffine
from handmim.objectives.keypoints import KeypointHead, keypoint_diagnostics
from handmim.objectives.lejepa import SigReg, ViewMean
from handmim.objectives.pixel_recon import PixelRecon
from handmim.objectives.swav import SwAV
from handmim.tasks.pretrain import HandMimTask
from handmim.types import CropBatch, PretrainBatch, StepInfo

HEADS = {
    "keypoint": partial(KeypointHead, num_keypoints=6, hidden_dim=16, num_hidden=1),
    "projection": partial(ProjectionHead, num_prototypes=16, hidden_dim=16, bottleneck_dim=8),
    "embedding": partial(BatchNormMlp, hidden_dim=16, out_dim=8, num_hidden=1),
}
OBJECTIVES = {
    "patch_distill": PatchDistill,
    "class_distill": ClassDistill,
    "koleo": Koleo,
    "keypoint_align": KeypointAlign,
    "keypoint_agree": partial(KeypointAgree, hidden_dim=16, num_hidden=1),
    "pixel_recon": PixelRecon,
    "view_affine": ViewAffine,
    "view_flow": ViewFlow,
    "class_recon": ClassRecon,
    "point_recon": partial(PointRecon, points_from="own"),
    "class_hog": partial(ClassHog, cells=4),
    "point_hog": partial(PointHog, cells=4, head="mlp", points_from="own"),
    "patch_hog": PatchHog,
    "dense_match": DenseMatch,
    "latent_equivariance": LatentEquivariance,
    "view_mean": ViewMean,
    "sigreg": SigReg,
    "swav": SwAV,
}
HANDMIM = ("patch_distill", "keypoint_align", "pixel_recon", "view_affine", "class_recon")


def make_task(names=HANDMIM, heads=None, options=None, **kwargs) -> HandMimTask:
    """A small task.

    Args:
        names: of objectives.
        heads: shared heads that differ from `HEADS`.
        options: arguments by objective.
        kwargs: further arguments of the task.
    """
    torch.manual_seed(0)
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    backbone = ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, size=size)
    chosen = {
        name: OBJECTIVES[name](**{"weight": 1.0, **(options or {}).get(name, {})}) for name in names
    }
    settings = {"momentum": Schedule(0.9, 1.0)} | kwargs
    return HandMimTask(backbone, chosen, HEADS | (heads or {}), **settings)


def make_batch(seed: int = 0, share: float = 1.0, masks=None, **views):
    g = torch.Generator().manual_seed(seed)
    crops = CropBatch(torch.randint(0, 256, (4, 3, 40, 40), generator=g, dtype=torch.uint8))
    maker = ViewMaker(
        view_px=32,
        patch_px=8,
        masks=masks or MaskSampler(ratio=(0.3, 0.5), masked_share=share),
        colour=ColourJitter(),
        **views,
    )
    return maker(crops, g, StepInfo(0, 10))


def test_one_step_trains_every_student_part_and_no_teacher_part():
    task = make_task()
    result = task(make_batch(), StepInfo(0, 10))
    result.loss.backward()
    idle = [
        n
        for n, p in task.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert idle == []
    assert all(p.grad is None for p in task.teacher.parameters())
    for key in ("loss", "keypoints/spread_ndc", "targets/entropy_of_mean", "features/cls_std"):
        assert torch.isfinite(torch.as_tensor(result.scalars[key])), key


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_each_objective_runs_alone(name):
    task = make_task((name,))
    result = task(make_batch(warp_ndc=0.05), StepInfo(0, 10))
    assert torch.isfinite(result.loss)
    result.loss.backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in task.student["backbone"].parameters()
    )


def test_the_teacher_encodes_whole_views_and_the_student_masked_ones():
    task, batch = make_task(("patch_distill",)).eval(), make_batch()
    _, predictions = task.predict(batch, StepInfo(0, 10))
    found = predictions["patch_distill"]
    where = batch.is_masked.flatten(0, 2)
    is_masked = batch.is_masked.flatten(0, 1)
    with torch.no_grad():
        whole = task.teacher.net["backbone"](batch.views.flatten(0, 1)).patches.flatten(0, 1)[where]
        student = task.student["backbone"](batch.views.flatten(0, 1), is_masked)
        own = student.patches.flatten(0, 1)[where]
        teacher_logits = task.teacher.net["projection"](whole)
        temp = task.teacher_temp(0, 10)
        probs = task.each["patch_distill"].centering(teacher_logits, temp)
        torch.testing.assert_close(found.teacher, probs)
        torch.testing.assert_close(found.student, task.student["projection"](own))


def test_teacher_follows_by_the_scheduled_momentum():
    task = make_task()
    old = {n: p.clone() for n, p in task.teacher.net.named_parameters()}
    with torch.no_grad():
        for p in task.student.parameters():
            p.add_(1.0)
    scalars = task.after_step(StepInfo(0, 10))
    m = scalars["schedule/momentum"]
    assert m == pytest.approx(0.9)
    for n, p in task.teacher.net.named_parameters():
        torch.testing.assert_close(p, old[n] + (1 - m), atol=1e-5, rtol=1e-5)


def test_points_of_the_ema_teacher_carry_no_gradient_and_the_students_do():
    batch = make_batch()
    for target, has_gradient in (("ema", False), ("student", True)):
        task = make_task(("keypoint_align",), options={"keypoint_align": {"target": target}})
        _, predictions = task.predict(batch, StepInfo(0, 10))
        assert predictions["keypoint_align"].target.requires_grad is has_gradient


def test_frozen_prototypes_do_not_move_and_thaw_later():
    task = make_task(("patch_distill",), freeze_prototypes_steps=3)
    head = task.student["projection"]
    for step, moves in ((0, False), (3, True)):
        task.zero_grad()
        task(make_batch(), StepInfo(step, 10)).loss.backward()
        grads = [p.grad for n, p in head.named_parameters() if "prototype" in n]
        assert grads, "the projection head has prototypes"
        assert any(g is not None and g.abs().sum() > 0 for g in grads) is moves


@pytest.mark.parametrize("centering", [Centering, Sinkhorn])
def test_a_batch_without_masks_still_has_a_loss(centering):
    task = make_task(centering=centering)
    result = task(make_batch(share=0.0), StepInfo(0, 10))
    result.loss.backward()
    assert torch.isfinite(result.loss)


def test_images_leave_the_task_in_training_and_the_centre_alone():
    task = make_task()
    before = task.each["patch_distill"].centering.centre.clone()
    drawn = draw(task, make_batch(), (), None)
    assert {"views", "keypoints", "class_recon"} <= set(drawn)
    assert task.training
    assert torch.equal(task.each["patch_distill"].centering.centre, before)
    assert all(p.dtype.name == "uint8" and p.std() > 5 for p in drawn.values())


def test_exported_backbone_is_the_teachers(tmp_path):
    task = make_task()
    with torch.no_grad():
        for p in task.student.parameters():
            p.add_(1.0)
    path = tmp_path / "b.safetensors"
    task.export_backbone.export(path, {})
    fresh = make_task().student["backbone"]
    load_initial(fresh, str(path))
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(fresh.eval()(image).cls, task.features(image).cls)


def test_shared_heads_are_built_only_where_an_objective_requires_them():
    assert set(make_task(("pixel_recon",)).student) == {"backbone"}
    assert set(make_task(("patch_distill",)).student) == {"backbone", "projection"}
    own = make_task(("class_distill",), options={"class_distill": {"head": "own"}})
    assert set(own.student) == {"backbone"}
    assert set(own.teacher.net) == {"backbone", "class_projection"}


def test_an_objective_without_its_shared_head_is_refused():
    backbone = make_task(("pixel_recon",)).student["backbone"]
    with pytest.raises(ValueError, match="head 'projection', which is missing"):
        HandMimTask(backbone, {"patch_distill": PatchDistill()})
    with pytest.raises(ValueError, match="no objective"):
        HandMimTask(backbone, {})


def test_an_objective_that_reads_something_unknown_is_refused():
    class Wrong(Koleo):
        reads = frozenset({"class"})

    backbone = make_task(("pixel_recon",)).student["backbone"]
    with pytest.raises(ValueError, match=r"reads \['class'\], which must be among"):
        HandMimTask(backbone, {"wrong": Wrong()})


@pytest.mark.parametrize("name", ["patches", "keypoints", "teacher", "teacher_keypoints"])
def test_what_an_objective_uses_without_reading_it_is_named(name):
    class Wrong(Koleo):
        def loss(self, ctx, prediction):
            return getattr(ctx, name)

    task = HandMimTask(make_task(("pixel_recon",)).student["backbone"], {"wrong": Wrong()})
    with pytest.raises(ValueError, match=r"objective wrong: ctx\.\w+ is used, but no `reads`"):
        task(make_batch(), StepInfo(0, 10))


class TapAndClass(Koleo):
    taps = (1,)

    def loss(self, ctx, prediction):
        return ctx.tapped[1].mean() + super().loss(ctx, prediction)


def test_a_tapping_objective_freezes_blocks_above_unless_it_reads_class_tokens():
    backbone = make_task(("pixel_recon",)).student["backbone"]
    task = HandMimTask(backbone, {"tapping": TapAndClass()}, export="student")
    with pytest.raises(ValueError, match=r"objective tapping: ctx.student is used.* names 'cls'"):
        task(make_batch(), StepInfo(0, 10))
    tapping = TapAndClass()
    tapping.reads = frozenset({"cls"})
    backbone = make_task(("pixel_recon",)).student["backbone"]
    task = HandMimTask(backbone, {"tapping": tapping}, export="student")
    task(make_batch(), StepInfo(0, 10)).loss.backward()
    assert all(p.grad is not None for p in backbone.net.blocks[-1].parameters())


@pytest.mark.parametrize("name", ["patch_distill", "pixel_recon", "patch_hog", "dense_match"])
def test_objectives_of_masked_patches_refuse_that_these_are_dropped(name):
    with pytest.raises(ValueError, match=f"mask_mode=drop .* objective {name}"):
        make_task((name,), mask_mode="drop")
    make_task(("pixel_recon",), options={"pixel_recon": {"head": "decoder"}}, mask_mode="drop")


def test_diagnostics_distinguish_collapse():
    g = torch.Generator().manual_seed(0)
    assert effective_rank(torch.randn(200, 8, generator=g)) > 7
    assert (
        effective_rank(torch.ones(200, 1) * torch.randn(200, 1, generator=g) @ torch.ones(1, 8))
        < 1.1
    )
    eye = torch.eye(2, 3).expand(5, 2, 2, 3)
    eye = PretrainBatch(torch.zeros(5, 2, 3, 8, 8), eye, torch.zeros(5, 2, 1, dtype=torch.bool))
    points = torch.rand(5, 1, 6, 2, generator=g).expand(5, 2, 6, 2)
    alive = keypoint_diagnostics(points, eye)
    assert alive["keypoints/disagreement_ndc"] < 1e-6
    assert alive["keypoints/retrieval"] == 1.0
    dead = keypoint_diagnostics(torch.zeros(5, 2, 6, 2), eye)
    assert dead["keypoints/spread_ndc"] == 0
    one = torch.zeros(10, 4)
    one[:, 2] = 1.0
    assert Targets(one).diagnostics()["targets/entropy_of_mean"] == 0
    assert Targets(torch.eye(4)).diagnostics()["targets/entropy_of_mean"] == pytest.approx(1.0)
    assert Targets(torch.full((3, 4), 0.25)).diagnostics()[
        "targets/entropy_of_each"
    ] == pytest.approx(1.0)


def test_the_teacher_holds_each_of_its_modules_under_one_name():
    names = ("class_distill", "keypoint_align")
    task = make_task(names, options={"class_distill": {"head": "own"}})
    other = task.objectives["keypoint_align"]
    other.class_projection, other.ema = torch.nn.Linear(2, 2), ("class_projection",)
    with pytest.raises(ValueError, match=r"keypoint_align gives .* 'class_projection', a name"):
        task.followed()
