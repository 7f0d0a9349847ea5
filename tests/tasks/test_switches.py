"""Every switch of pretraining from the command line: three steps, and it changes what is
learned."""

import functools
from typing import NamedTuple

import pytest
import torch
from hydra.utils import instantiate
from lightning_fabric import Fabric

from handmim.types import CropBatch, StepInfo
from handmim.utils.config import drop_unbuilt
from tests.test_configs import composed

NUM_STEPS = 3  # a moving centre is used from the second step on, and shows in the weights after it
# Colours are drawn last, after whatever else a switch of the views draws: without them a switch
# that only moves the random numbers on shows nothing.
SMALL = (
    "experiment=cpu_base",
    "task.backbone.size.embed_dim=24",
    "task.backbone.size.depth=2",
    "task.backbone.size.num_heads=2",
    "views.colour.jitter_prob=0",
    "views.colour.grey_prob=0",
)
METHODS = ("handmim-plain", "ibot", "dino", "mae", "simmim", "peclr")
ALIGN = "task.losses.keypoint_align.term"
# Baselines: what a switch is added to, so that nothing differs but the switch.
PLAIN: tuple[str, ...] = ()
MASKED = ("views.masks.masked_share=1.0",)  # else chance decides whether a mask is among the views
POINTS = ("loss=[keypoint_align]",)
WARPED = (*POINTS, "views.warp_ndc=0.1")
PATCHES = ("loss=[patch_distill]", *MASKED)
BOTH = ("loss=[patch_distill,class_distill]", *MASKED)
CLASSES = ("loss=[class_distill]",)
REDRAWN = ("loss=[keypoint_align,point_recon]",)
HOG = ("loss=[patch_hog]", *MASKED)
MOVING = ("centering=ema", *MASKED)
# Name: baseline, and the one override that is the switch; where the baseline has the same key, the
# switch replaces it.
SWITCHES: dict[str, tuple[tuple[str, ...], str]] = {
    # 2.0, 2.1 backbones and initial weights
    "vit_s": (PLAIN, "task.backbone.size.embed_dim=48"),
    "256 px": (PLAIN, "task.backbone.img_px=64"),
    # 2.2 views
    "flip": (PLAIN, "views.flip_prob=0.5"),
    "rotation 0": (PLAIN, "views.rotation_deg=0"),
    "rotation 30": (PLAIN, "views.rotation_deg=30"),
    "rotation 180": (PLAIN, "views.rotation_deg=180"),
    "full rotation": (PLAIN, "views.full_rotation_prob=0.5"),
    "one scale": (PLAIN, "views.scale=[0.8,0.8]"),
    "shift": (PLAIN, "views.shift_ndc=0.0"),
    "anisotropy": (PLAIN, "views.aspect=0.1"),
    "hidden rotation": (PLAIN, "views.shared_rotation_deg=0"),
    "hidden full rotation": (PLAIN, "views.shared_full_rotation_prob=0.5"),
    "hidden scale": (PLAIN, "views.shared_scale=0.0"),
    "hidden shift": (PLAIN, "views.shared_shift_ndc=0.0"),
    "three views": (PLAIN, "views.num_views=3"),
    "padding": (PLAIN, "views.padding=zeros"),
    "warp": (PLAIN, "views.warp_ndc=0.1"),
    "colours": (PLAIN, "views.colour.jitter_prob=0.8"),
    "colours of view b": (("views=asymmetric", "views.colour_later=null"), "views=asymmetric"),
    "scale inversion off": (POINTS, f"{ALIGN}.invert_scale=false"),
    "local crops": (CLASSES, "views.num_local=2"),
    "cross-background pairs": (PLAIN, "views.partner_prob=0.5"),
    # 2.4 pseudo-keypoints
    "frame view": (PLAIN, f"{ALIGN}.frame=view"),
    "same-view pairs": (("task.keypoint_target=ema", *MASKED), f"{ALIGN}.pairs=cross+same"),
    "l2": (PLAIN, f"{ALIGN}.kind=l2"),
    "cosine": (PLAIN, f"{ALIGN}.kind=cosine"),
    "sigma with gradient": (PLAIN, f"{ALIGN}.detach_sigma=false"),
    "sigma over time": (PLAIN, f"{ALIGN}.sigma_momentum=0.9"),
    "reg": (PLAIN, f"{ALIGN}.parts=reg"),
    "regularised": (PLAIN, f"{ALIGN}.parts=regularised"),
    "nce only": (PLAIN, f"{ALIGN}.parts=disc"),
    "proto": (PLAIN, "keypoint_disc=proto"),
    "no contrast": (PLAIN, "keypoint_disc=none"),
    "canonical shapes": (PLAIN, f"{ALIGN}.embed=canonical"),
    "K 42": (PLAIN, "task.heads.keypoint.num_keypoints=42"),
    "d 3": (PLAIN, "task.heads.keypoint.num_dims=3"),
    "points from the class token": (PLAIN, "keypoint_head=class_token"),
    "class token does not ask": (PLAIN, "task.heads.keypoint.class_query=false"),
    "heat maps": (PLAIN, "task.heads.keypoint.temp=1.0"),
    "ema target": (PLAIN, "task.keypoint_target=ema"),
    "predictor": (PLAIN, "keypoint_predictor=mlp"),
    "anchor": (POINTS, "loss=[keypoint_align,view_affine]"),
    "anchor 3": (PLAIN, "task.losses.view_affine.weight=3"),
    "pka": (PATCHES, "loss=[patch_distill,keypoint_align]"),
    "dense": (POINTS, "loss=[keypoint_align,dense_match]"),
    "flow": (WARPED, "loss=[keypoint_align,view_flow]"),
    "agree": (POINTS, "loss=[keypoint_align,keypoint_agree]"),
    "latent equivariance": (POINTS, "loss=[keypoint_align,latent_equivariance]"),
    "class redraws": (POINTS, "loss=[keypoint_align,class_recon]"),
    "points redraw": (POINTS, "loss=[keypoint_align,point_recon]"),
    "points redraw their own view": (REDRAWN, "task.redraw_from=own"),
    "points tell their own view": (PLAIN, "task.redraw_from=own"),
    "class hog": (POINTS, "loss=[keypoint_align,class_hog]"),
    "point hog": (POINTS, "loss=[keypoint_align,point_hog]"),
    "point hog by coordinates": (PLAIN, "point_hog_head=mlp"),
    "patch hog": (POINTS, "loss=[keypoint_align,patch_hog]"),
    "patch hog of hidden patches": (HOG, "task.losses.patch_hog.term.where=masked"),
    # 2.5 class distillation
    "class term": (PATCHES, "loss=[patch_distill,class_distill]"),
    "own class head": (BOTH, "task.class_head=own"),
    "class temperature": (CLASSES, "task.class_teacher_temp=0.02"),
    "koleo": (PATCHES, "loss=[patch_distill,koleo]"),
    # 2.6 patch distillation
    "centring": (MASKED, "centering=ema"),
    "centring over all patches": (MOVING, "task.centering.over=all"),
    "sinkhorn in another method": (("method=handmim-plain", *MASKED), "centering=sinkhorn"),
    "P 64": (MASKED, "task.heads.projection.num_prototypes=64"),
    "fixed gain": (MASKED, "task.heads.projection.train_gain=false"),
    "temperature": (MASKED, "task.teacher_temp=0.02"),
    "frozen last layer": (MASKED, "task.freeze_prototypes_steps=2"),
    "all views masked": (PLAIN, "views.masks.masked_share=1.0"),
    "ratio": (MASKED, "views.masks.ratio=[0.3,0.6]"),
    "random masks": (MASKED, "views.masks.shape=random"),
    "hand-centred masks": (MASKED, "views.masks.centre_bias=1.0"),
    "curriculum": ((*MASKED, "views.masks.ratio=[0.1,0.3]"), "views=curriculum"),
    "one view masked": (MASKED, "views.masks.masked_views=one"),
    "exact counts": (MASKED, "views.masks.exact_count=true"),
    # 2.7 pixels
    "raw pixels": (MASKED, "task.losses.pixel_recon.term.per_patch_norm=false"),
    "l1": (MASKED, "task.losses.pixel_recon.term.kind=l1"),
    "clean target": (
        (*MASKED, "views.colour.jitter_prob=0.8", "views.keep_clean=true"),
        "task.pixel.clean_target=true",
    ),
    "decoder": (MASKED, "pixel_head=decoder"),
    "tap of an earlier layer": (MASKED, "task.heads.pixel.tap_layers=[0.5]"),
    "multi-level taps": (MASKED, "task.heads.pixel.tap_layers=[0.5,1.0]"),
    "visible patches": (MASKED, "task.pixel.visible_share=0.1"),
    # 2.8 optimisation
    "clip per tensor": (("optim.clip_norm=0.01",), "optim.clip_by=per_tensor"),
    "layer decay": (PLAIN, "task.layer_decay=0.5"),
    "patch embedding": (PLAIN, "task.patch_embed_lr_scale=0.1"),
    "export student": (PLAIN, "task.export=student"),
    "drop path": (PLAIN, "task.backbone.drop_path_rate=0.5"),
    # rivals
    **{f"method {m}": (PLAIN, f"method={m}") for m in METHODS},
}
# Keys that a choice of views brings itself.
BROUGHT = {"views=curriculum": ("views.masks.ratio",), "views=asymmetric": ("views.colour_later",)}


class Steps(NamedTuple):
    """What a few steps of training came to."""

    initial: dict[str, torch.Tensor]  # the student's weights
    numbers: tuple[float, ...]  # losses; absolute sums of the student's and the kept backbone


def switched(baseline: tuple[str, ...], switch: str) -> tuple[str, ...]:
    """The baseline's overrides with the switch among them."""
    taken = (switch.split("=")[0], *BROUGHT.get(switch, ()))
    return (*(o for o in baseline if o.split("=")[0] not in taken), switch)


@functools.cache
def steps_of(overrides: tuple[str, ...], start: tuple[str, ...] | None = None) -> Steps:
    """Train a few steps.

    Args:
        overrides: of the default.
        start: overrides whose initial weights are taken wherever they have a place, so that a
            head more or less does not change those of the others.
    """
    cfg = composed("pretrain", *SMALL, *overrides)
    for part in (cfg.task.losses, cfg.task.heads):
        drop_unbuilt(part)
    torch.manual_seed(0)
    task = instantiate(cfg.task)
    if start is not None:
        begin_like(task, steps_of(start).initial)
    initial = {k: v.clone() for k, v in task.student.state_dict().items()}
    make_views, recipe = instantiate(cfg.views), instantiate(cfg.optim)
    fabric = Fabric(accelerator="cpu")
    task, optimizer = fabric.setup(task, recipe.build(task, task.lr_scales()))
    g = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (4, 3, 8, 8), generator=g, dtype=torch.uint8)
    image = torch.nn.functional.interpolate(crops, scale_factor=8)
    numbers = []
    for step in range(NUM_STEPS):
        info = StepInfo(step, NUM_STEPS)
        torch.manual_seed(step)
        batch = make_views(CropBatch(image, image.flip(1)), g.manual_seed(step), info)
        recipe.apply(optimizer, step, NUM_STEPS, 4)
        result = task(batch, info)
        result.loss.backward()
        task.module.before_update(info)
        recipe.clip(fabric, task, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        task.module.after_step(info)
        numbers.append(float(result.loss.detach()))
    # Not those of the heads: a head more or less would tell by itself.
    for backbone in (task.module.student["backbone"], task.module.export_backbone):
        numbers.append(sum(float(p.detach().double().abs().sum()) for p in backbone.parameters()))
    return Steps(initial, tuple(numbers))


def begin_like(task, initial: dict[str, torch.Tensor]) -> None:
    """Student and teacher start from these weights where name and shape are theirs."""
    own = task.student.state_dict()
    shared = {k: v for k, v in initial.items() if k in own and v.shape == own[k].shape}
    task.student.load_state_dict(own | shared)
    if task.teacher is not None:
        for name, module in task.teacher.net.items():
            module.load_state_dict(task.student[name].state_dict())


@pytest.mark.parametrize("name", list(SWITCHES))
def test_every_switch_changes_what_is_learned(name):
    baseline, switch = SWITCHES[name]
    numbers = steps_of(switched(baseline, switch), start=baseline).numbers
    assert torch.isfinite(torch.tensor(numbers)).all()
    assert numbers != steps_of(baseline).numbers, "the switch changes nothing"


@pytest.mark.parametrize(
    ("baseline", "nothing"),
    [
        (PLAIN, "task.export=teacher"),
        (MASKED, "views.masks.shape=block"),
        # heads and options that nothing reads
        (POINTS, "task.class_head=own"),
        (PATCHES, "views.num_local=2"),
        (CLASSES, "task.centering.num_iters=3"),
    ],
)
def test_what_switches_nothing_changes_nothing(baseline, nothing):
    """Else the test above could not fail."""
    numbers = steps_of(switched(baseline, nothing), start=baseline).numbers
    assert numbers == steps_of(baseline).numbers
