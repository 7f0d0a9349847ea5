"""Every switch of pretraining from the command line: two steps, and it changes what is learned."""

import functools

import pytest
import torch
from hydra.utils import instantiate
from lightning.fabric import Fabric

from handmim.contracts import CropBatch, StepInfo
from handmim.utils.config import drop_unbuilt
from tests.test_configs import composed

SMALL = (
    "experiment=cpu_base",
    "task.backbone.size.embed_dim=24",
    "task.backbone.size.depth=2",
    "task.backbone.size.num_heads=2",
)
METHODS = ("handmim-plain", "ibot", "dino", "mae", "simmim", "peclr")
ALIGN = "task.losses.keypoint_align.term"
WARPED = "views.warp_ndc=0.1"
# Name: overrides, and what the default is compared with when it is not the plain default.
SWITCHES: dict[str, tuple[str, ...]] = {
    # 2.0, 2.1 backbones and initial weights
    "vit_s": ("task.backbone.size.embed_dim=48",),
    "256 px": ("task.backbone.img_px=64",),
    # 2.2 views
    "flip": ("views.flip_prob=0.5",),
    "rotation 0": ("views.rotation_deg=0",),
    "rotation 30": ("views.rotation_deg=30",),
    "rotation 180": ("views.rotation_deg=180",),
    "full rotation": ("views.full_rotation_prob=0.5",),
    "one scale": ("views.scale=[0.8,0.8]",),
    "shift": ("views.shift_ndc=0.0",),
    "anisotropy": ("views.aspect=0.1",),
    "hidden rotation": ("views.hidden_rotation_deg=0",),
    "hidden full rotation": ("views.hidden_full_rotation_prob=0.5",),
    "hidden scale": ("views.hidden_scale=0.0",),
    "hidden shift": ("views.hidden_shift_ndc=0.0",),
    "three views": ("views.num_views=3",),
    "padding": ("views.padding=zeros",),
    "warp": (WARPED,),
    "colours of view b": ("views=asymmetric",),
    "scale inversion off": (f"{ALIGN}.invert_scale=false",),
    "local crops": ("method=dino", "views.num_local=2", "views.local_px=24"),
    "cross-background pairs": ("views.partner_prob=0.5",),
    # 2.4 pseudo-keypoints
    "frame view": (f"{ALIGN}.frame=view",),
    "same-view pairs": (f"{ALIGN}.pairs=cross+same", "task.keypoint_target=ema"),
    "l2": (f"{ALIGN}.kind=l2",),
    "cosine": (f"{ALIGN}.kind=cosine",),
    "sigma with gradient": (f"{ALIGN}.detach_sigma=false",),
    "sigma over time": (f"{ALIGN}.sigma_momentum=0.9",),
    "reg": (f"{ALIGN}.parts=reg",),
    "regularised": (f"{ALIGN}.parts=regularised",),
    "nce only": (f"{ALIGN}.parts=disc",),
    "proto": ("keypoint_disc=proto",),
    "no contrast": ("keypoint_disc=none",),
    "canonical shapes": (f"{ALIGN}.embed=canonical",),
    "K 42": ("task.heads.keypoint.num_keypoints=42",),
    "d 3": ("task.heads.keypoint.num_dims=3",),
    "points from the class token": ("keypoint_head=class_token",),
    "class token does not ask": ("task.heads.keypoint.class_query=false",),
    "heat maps": ("task.heads.keypoint.temp=1.0",),
    "ema target": ("task.keypoint_target=ema",),
    "predictor": ("keypoint_predictor=mlp",),
    "anchor 3": ("task.losses.view_affine.weight=3",),
    "pka off": ("loss=[patch_distill,pixel_recon]",),
    "dense": ("loss=[patch_distill,dense_match]",),
    "flow": ("loss=[patch_distill,view_flow]", WARPED),
    "agree": ("loss=[keypoint_align,keypoint_agree]",),
    "latent equivariance": ("loss=[latent_equivariance]",),
    "class redraws": ("loss=[class_recon]",),
    "points redraw": ("loss=[keypoint_align,point_recon]",),
    "points redraw their own view": ("loss=[keypoint_align,point_recon]", "task.redraw_from=own"),
    "points tell their own view": ("task.redraw_from=own",),
    "class hog": ("loss=[class_hog]",),
    "point hog": ("loss=[keypoint_align,point_hog]",),
    "point hog by coordinates": ("point_hog_head=mlp",),
    "patch hog": ("loss=[patch_hog]",),
    "patch hog of hidden patches": ("loss=[patch_hog]", "task.losses.patch_hog.term.where=masked"),
    # 2.5 class distillation
    "class term": ("loss=[patch_distill,class_distill]",),
    "own class head": ("loss=[patch_distill,class_distill]", "task.class_head=own"),
    "class temperature": ("loss=[class_distill]", "task.class_teacher_temp=0.02"),
    "koleo": ("loss=[patch_distill,koleo]",),
    # 2.6 patch distillation
    "centring": ("centering=ema",),
    "centring over all patches": ("centering=ema", "task.centering.over=all"),
    "sinkhorn": ("method=handmim-plain", "centering=sinkhorn"),
    "P 64": ("task.heads.projection.num_prototypes=64",),
    "fixed gain": ("task.heads.projection.train_gain=false",),
    "temperature": ("task.teacher_temp=0.02",),
    "frozen last layer": ("task.freeze_prototypes_steps=2",),
    "all views masked": ("views.masks.ratio=[0.3,0.6]", "views.masks.masked_share=1.0"),
    "random masks": ("views.masks.shape=random", "views.masks.ratio=[0.6,0.75]"),
    "hand-centred masks": ("views.masks.centre_bias=1.0",),
    "curriculum": ("views=curriculum",),
    "one view masked": ("views.masks.masked_views=one",),
    "exact counts": ("views.masks.exact_count=true", "views.masks.masked_share=1.0"),
    # 2.7 pixels
    "raw pixels": ("task.losses.pixel_recon.term.per_patch_norm=false",),
    "l1": ("task.losses.pixel_recon.term.kind=l1",),
    "clean target": ("task.pixel.clean_target=true", "views.keep_clean=true"),
    "decoder": ("pixel_head=decoder",),
    "tap at three quarters": ("task.heads.pixel.tap_layers=[0.5]",),
    "multi-level taps": ("task.heads.pixel.tap_layers=[0.5,1.0]",),
    "visible patches": ("task.pixel.visible_share=0.1",),
    # 2.8 optimisation
    "clip per tensor": ("optim.clip_by=per_tensor", "optim.clip_norm=0.01"),
    "layer decay": ("task.layer_decay=0.5",),
    "patch embedding": ("task.patch_embed_lr_scale=0.1",),
    "export student": ("task.export=student",),
    "drop path": ("task.backbone.drop_path_rate=0.5",),
    # rivals
    **{f"method {m}": (f"method={m}",) for m in METHODS},
}  # fmt: skip
# What does not show in two steps' losses and weights of the student.
SILENT = {"export student"}


@functools.cache
def two_steps(overrides: tuple[str, ...]) -> tuple[float, float, float]:
    """Losses of two steps and the sum of the exported backbone's weights after them."""
    cfg = composed("pretrain", *SMALL, *overrides)
    for part in (cfg.task.losses, cfg.task.heads):
        drop_unbuilt(part)
    torch.manual_seed(0)
    task = instantiate(cfg.task)
    make_views, recipe = instantiate(cfg.views), instantiate(cfg.optim)
    fabric = Fabric(accelerator="cpu")
    task, optimizer = fabric.setup(task, recipe.build(task, task.lr_scales()))
    g = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (4, 3, 8, 8), generator=g, dtype=torch.uint8)
    image = torch.nn.functional.interpolate(crops, scale_factor=8)
    partner = image.flip(1) if "views.partner_prob=0.5" in overrides else None
    losses = []
    for step in range(2):
        info = StepInfo(step, 2)
        torch.manual_seed(step)
        batch = make_views(CropBatch(image, partner), g, info)
        recipe.apply(optimizer, step, 2, 4)
        result = task(batch, info)
        result.loss.backward()
        task.module.before_update(info)
        recipe.clip(fabric, task, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        task.module.after_step(info)
        losses.append(float(result.loss.detach()))
    weights = sum(float(p.detach().double().abs().sum()) for p in task.student.parameters())
    return losses[0], losses[1], weights


@pytest.mark.parametrize("name", list(SWITCHES))
def test_two_steps_with_every_switch(name):
    first, second, weights = two_steps(SWITCHES[name])
    assert torch.isfinite(torch.tensor([first, second, weights])).all()
    plain = two_steps(())
    if name not in SILENT:
        assert (first, second, weights) != plain, "the switch changes nothing"
