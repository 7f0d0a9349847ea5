from functools import partial

import pytest
import torch

from handmim.data.colour import ColourJitter
from handmim.data.masking import MaskSampler
from handmim.data.views import ViewMaker
from handmim.diagnostics.statistics import effective_rank, keypoint_diagnostics, target_diagnostics
from handmim.engine.schedule import Schedule
from handmim.losses import (
    class_distill,
    class_recon,
    dense_match,
    hog,
    keypoint_align,
    koleo,
    latent_equivariance,
    patch_distill,
    pixel_recon,
    point_recon,
    view_affine,
    view_flow,
)
from handmim.losses.total import Weighted
from handmim.models.centering import Centering, Sinkhorn
from handmim.models.heads.hog import HogHead, PatchHogHead
from handmim.models.heads.keypoint import KeypointHead
from handmim.models.heads.pixel import PixelHead
from handmim.models.heads.projection import ProjectionHead
from handmim.models.heads.token import AffineHead, DenseHead, DisplacementHead, ThumbnailHead
from handmim.models.vit import ViT
from handmim.models.weights.load import load_initial
from handmim.tasks.pretrain import HandMimTask
from handmim.types import CropBatch, PretrainBatch, StepInfo

POINTS = partial(KeypointHead, num_keypoints=6, hidden_dim=16, num_hidden=1)
PROTOTYPES = partial(ProjectionHead, num_prototypes=16, hidden_dim=16, bottleneck_dim=8)
# Every loss with the heads it brings.
PARTS = {
    "patch_distill": (patch_distill.Term, {"projection": PROTOTYPES}),
    "class_distill": (class_distill.Term, {"projection": PROTOTYPES}),
    "koleo": (koleo.Term, {}),
    "keypoint_align": (keypoint_align.Term, {"keypoint": POINTS}),
    "pixel_recon": (pixel_recon.Term, {"pixel": PixelHead}),
    "view_affine": (view_affine.Term, {"affine": AffineHead}),
    "view_flow": (view_flow.Term, {"displacement": partial(DisplacementHead, warp_grid=4)}),
    "class_recon": (class_recon.Term, {"thumbnail": ThumbnailHead}),
    "point_recon": (point_recon.Term, {"keypoint": POINTS, "point_thumbnail": ThumbnailHead}),
    "class_hog": (partial(hog.Term, source="class"), {"class_hog": partial(HogHead, cells=4)}),
    "point_hog": (
        partial(hog.Term, source="points"),
        {"keypoint": POINTS, "point_hog": partial(HogHead, cells=4)},
    ),
    "patch_hog": (partial(hog.Term, source="patches"), {"patch_hog": PatchHogHead}),
    "dense_match": (dense_match.Term, {"dense": DenseHead}),
    "latent_equivariance": (latent_equivariance.Term, {}),
}
HANDMIM = ("patch_distill", "keypoint_align", "pixel_recon", "view_affine", "class_recon")


def make_task(losses=HANDMIM, extra=None, terms=None, **kwargs) -> HandMimTask:
    torch.manual_seed(0)
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    backbone = ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, size=size)
    heads = {k: v for name in losses for k, v in PARTS[name][1].items()} | (extra or {})
    chosen = {name: Weighted((terms or {}).get(name, PARTS[name][0])()) for name in losses}
    settings = {"centering": Centering, "momentum": Schedule(0.9, 1.0)} | kwargs
    return HandMimTask(backbone, heads, chosen, **settings)


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
        for n, p in task.student.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert idle == []
    assert all(p.grad is None for p in task.teacher.parameters())
    for key in ("loss", "keypoints/spread_ndc", "targets/entropy_of_mean", "features/cls_std"):
        assert torch.isfinite(torch.as_tensor(result.scalars[key])), key


@pytest.mark.parametrize("name", list(PARTS))
def test_each_loss_runs_alone_with_its_own_head(name):
    task = make_task((name,))
    result = task(make_batch(warp_ndc=0.05), StepInfo(0, 10))
    assert torch.isfinite(result.loss)
    result.loss.backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in task.student["backbone"].parameters()
    )


def test_teacher_sees_whole_views_and_student_only_unmasked_patches():
    task, batch = make_task(("patch_distill",)).eval(), make_batch()
    out, _ = task.outputs(batch, StepInfo(0, 10))
    where = batch.is_masked.flatten(0, 2)
    hidden = batch.is_masked.flatten(0, 1)
    with torch.no_grad():
        whole = task.teacher.net["backbone"](batch.views.flatten(0, 1)).patches.flatten(0, 1)[where]
        seen = task.student["backbone"](batch.views.flatten(0, 1), hidden).patches.flatten(0, 1)[
            where
        ]
        teacher_logits = task.teacher.net["projection"](whole)
        temp = task.teacher_temp(0, 10)
        probs = task.centering["patches"](teacher_logits, temp)
        torch.testing.assert_close(out.patches.teacher_probs, probs)
        torch.testing.assert_close(out.patches.student_logits, task.student["projection"](seen))


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
    ema = make_task(("keypoint_align",), keypoint_target="ema")
    out, _ = ema.outputs(batch, StepInfo(0, 10))
    assert not out.target_keypoints_ndc.requires_grad
    both = make_task(("keypoint_align",), keypoint_target="student")
    out, _ = both.outputs(batch, StepInfo(0, 10))
    assert out.target_keypoints_ndc.requires_grad
    with pytest.raises(ValueError, match=r"task\.keypoint_target"):
        make_task(keypoint_target="both")


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


def test_evaluation_pictures_leave_the_task_in_training_and_the_centre_alone():
    task = make_task()
    before = task.centering["patches"].centre.clone()
    drawn = task.images(make_batch())
    assert {"views", "keypoints", "thumbnails"} <= set(drawn)
    assert task.training
    assert torch.equal(task.centering["patches"].centre, before)
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


def test_unknown_heads_are_named():
    with pytest.raises(ValueError, match="unknown heads"):
        make_task(("pixel_recon",), extra={"points": PixelHead})


def test_monitors_tell_collapse_from_health():
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
    assert target_diagnostics(one)["targets/entropy_of_mean"] == 0
    assert target_diagnostics(torch.eye(4))["targets/entropy_of_mean"] == pytest.approx(1.0)
    assert target_diagnostics(torch.full((3, 4), 0.25))["targets/entropy_of_each"] == pytest.approx(
        1.0
    )
