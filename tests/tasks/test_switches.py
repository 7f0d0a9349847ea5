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
METHODS = ("handmim-plain", "ibot", "dino", "swav", "lejepa", "mae", "simmim", "peclr")
ALIGN = "task.objectives.keypoint_align"
# Baselines: what a switch is added to, so that nothing differs but the switch.
PLAIN: tuple[str, ...] = ()
MASKED = ("views.masks.masked_share=1.0",)  # else chance decides whether a mask is among the views
POINTS = ("objective=[keypoint_align]",)
WARPED = (*POINTS, "views.warp_ndc=0.1")
PATCHES = ("objective=[patch_distill]", *MASKED)
BOTH = ("objective=[patch_distill,class_distill]", *MASKED)
CLASSES = ("objective=[class_distill]",)
RECONSTRUCTED = ("objective=[keypoint_align,point_recon]",)
HOG = ("objective=[patch_hog]", *MASKED)
NECK = ("objective=[pyramid_hog]", *MASKED)
MOVING = ("centering=ema", *MASKED)
SWAV = ("method=swav",)
LEJEPA = ("method=lejepa",)
SIGREG = ("objective=[keypoint_align,sigreg]", *MASKED)
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
    "colours of view b": (PLAIN, "views.colour_later={blur_prob: 0.1, solarise_prob: 0.2}"),
    "scale inversion off": (POINTS, f"{ALIGN}.invert_scale=false"),
    "local crops": (CLASSES, "views.num_local=2"),
    "cross-background pairs": (PLAIN, "views.partner_prob=0.5"),
    # 2.4 pseudo-keypoints
    "frame view": (PLAIN, f"{ALIGN}.frame=view"),
    "same-view pairs": (
        ("task.objectives.keypoint_align.target=ema", *MASKED),
        f"{ALIGN}.pairs=cross+same",
    ),
    "l2": (PLAIN, f"{ALIGN}.kind=l2"),
    "cosine": (PLAIN, f"{ALIGN}.kind=cosine"),
    "scale with gradient": (PLAIN, f"+{ALIGN}.detach_scale=false"),
    "scale over time": (PLAIN, f"+{ALIGN}.scale_momentum=0.9"),
    "reg": (PLAIN, f"{ALIGN}.parts=reg"),
    "regularised": (PLAIN, f"{ALIGN}.parts=regularised"),
    "nce only": (PLAIN, f"{ALIGN}.parts=disc"),
    "proto": (PLAIN, "task.objectives.keypoint_align.disc=proto"),
    "no contrast": (PLAIN, "task.objectives.keypoint_align.disc=none"),
    "canonical shapes": (PLAIN, f"{ALIGN}.embed=canonical"),
    "K 42": (PLAIN, "task.heads.keypoint.num_keypoints=42"),
    "d 3": (PLAIN, "task.heads.keypoint.num_dims=3"),
    "points from the class token": (PLAIN, "keypoint_head=class_token"),
    "learned queries alone": (PLAIN, "task.heads.keypoint.class_query=false"),
    "heat maps": (PLAIN, "task.heads.keypoint.temp=1.0"),
    "ema target": (PLAIN, "task.objectives.keypoint_align.target=ema"),
    "predictor": (PLAIN, "task.objectives.keypoint_align.predictor=true"),
    "anchor": (POINTS, "objective=[keypoint_align,view_affine]"),
    "anchor 3": (PLAIN, "task.objectives.view_affine.weight=3"),
    "pka": (PATCHES, "objective=[patch_distill,keypoint_align]"),
    "dense": (POINTS, "objective=[keypoint_align,dense_match]"),
    "flow": (WARPED, "objective=[keypoint_align,view_flow]"),
    "agree": (POINTS, "objective=[keypoint_align,keypoint_agree]"),
    "latent equivariance": (POINTS, "objective=[keypoint_align,latent_equivariance]"),
    "class reconstructs": (POINTS, "objective=[keypoint_align,class_recon]"),
    "points reconstruct": (POINTS, "objective=[keypoint_align,point_recon]"),
    "points reconstruct their own view": (
        RECONSTRUCTED,
        "task.objectives.point_recon.points_from=own",
    ),
    "points predict their own view": (PLAIN, "task.objectives.point_hog.points_from=own"),
    "class hog": (POINTS, "objective=[keypoint_align,class_hog]"),
    "point hog": (POINTS, "objective=[keypoint_align,point_hog]"),
    "point hog by coordinates": (PLAIN, "task.objectives.point_hog.head=mlp"),
    "patch hog": (POINTS, "objective=[keypoint_align,patch_hog]"),
    "patch hog of masked patches": (HOG, "task.objectives.patch_hog.where=masked"),
    "pyramid hog": (POINTS, "objective=[keypoint_align,pyramid_hog]"),
    "weight of pyramid hog": (NECK, "task.objectives.pyramid_hog.weight=0.1"),
    "deconvolutions": (NECK, "task.heads.neck.pyramid=deconv"),
    "channels of the neck": (NECK, "task.heads.neck.channels=32"),
    "two levels": (NECK, "task.heads.neck.num_levels=2"),
    "batch norm in the neck": (NECK, "task.heads.neck.norm=batch"),
    "neck of two blocks": (NECK, "task.heads.neck.taps=[1]"),
    # 2.5 class distillation
    "class term": (PATCHES, "objective=[patch_distill,class_distill]"),
    "own class head": (BOTH, "task.objectives.class_distill.head=own"),
    "class temperature": (CLASSES, "task.objectives.class_distill.teacher_temp=0.02"),
    "koleo": (PATCHES, "objective=[patch_distill,koleo]"),
    # 2.6 patch distillation
    "centring": (MASKED, "centering=ema"),
    "centring over all patches": (MOVING, "centerings.ema.over=all"),
    "sinkhorn in another method": (("method=handmim-plain", *MASKED), "centering=sinkhorn"),
    "P 64": (MASKED, "task.heads.projection.num_prototypes=64"),
    "fixed gain": (MASKED, "task.heads.projection.train_gain=false"),
    "temperature": (MASKED, "task.teacher_temp=0.02"),
    "frozen last layer": (MASKED, "task.freeze_prototypes_steps=2"),
    "all views masked": (PLAIN, "views.masks.masked_share=1.0"),
    "ratio": (MASKED, "views.masks.ratio=[0.3,0.6]"),
    "random masks": (MASKED, "views.masks.shape=random"),
    "hand-centred masks": (MASKED, "views.masks.centre_bias=1.0"),
    "curriculum": (
        (*MASKED, "views.masks.ratio=[0.1,0.3]"),
        "views.masks.ratio=[0.1,{_target_: handmim.engine.optim.Schedule, start: 0.3, end: 0.6}]",
    ),
    "one view masked": (MASKED, "views.masks.masked_views=one"),
    "exact counts": (MASKED, "views.masks.exact_count=true"),
    # 2.7 pixels
    "raw pixels": (MASKED, "task.objectives.pixel_recon.per_patch_norm=false"),
    "l1": (MASKED, "task.objectives.pixel_recon.kind=l1"),
    "clean target": (
        (*MASKED, "views.colour.jitter_prob=0.8", "views.keep_clean=true"),
        "task.objectives.pixel_recon.clean_target=true",
    ),
    "decoder": (MASKED, "task.objectives.pixel_recon.head=decoder"),
    "tap of an earlier layer": (MASKED, "task.objectives.pixel_recon.tap_layers=[0.5]"),
    "multi-level taps": (MASKED, "task.objectives.pixel_recon.tap_layers=[0.5,1.0]"),
    "visible patches": (MASKED, "task.objectives.pixel_recon.visible_share=0.1"),
    # 2.8 optimisation
    "clip per tensor": (("optim.clip_norm=0.01",), "optim.clip_by=per_tensor"),
    "layer decay": (PLAIN, "task.layer_decay=0.5"),
    "patch embedding": (PLAIN, "task.patch_embed_lr_scale=0.1"),
    "export student": (PLAIN, "task.export=student"),
    "drop path": (PLAIN, "task.backbone.drop_path_rate=0.5"),
    # rivals
    **{f"method {m}": (PLAIN, f"method={m}") for m in METHODS},
    "local crops of SwAV": (SWAV, "views.num_local=2"),
    "temperature of SwAV": (SWAV, "task.objectives.swav.temp=0.2"),
    "epsilon": (SWAV, "task.objectives.swav.epsilon=0.1"),
    "iterations of codes": (SWAV, "task.objectives.swav.num_iters=1"),
    "queue": (SWAV, "task.objectives.swav.queue_size=8"),
    "start of the queue": (
        (*SWAV, "task.objectives.swav.queue_size=8"),
        "task.objectives.swav.queue_start=0.5",
    ),
    "no batch norm": (SWAV, "task.heads.projection.batch_norm=false"),
    "frozen prototypes of SwAV": (SWAV, "task.freeze_prototypes_steps=2"),
    "local crops of LeJEPA": (LEJEPA, "views.num_local=2"),
    "two views": (LEJEPA, "views.num_views=2"),
    "width of embeddings": (LEJEPA, "task.heads.embedding.out_dim=64"),
    "width of the projector": (LEJEPA, "task.heads.embedding.hidden_dim=64"),
    "depth of the projector": (LEJEPA, "task.heads.embedding.num_hidden=1"),
    "lambda": (LEJEPA, "task.objectives.sigreg.weight=0.05"),
    "slices": (LEJEPA, "task.objectives.sigreg.num_slices=64"),
    "knots": (LEJEPA, "task.objectives.sigreg.num_knots=9"),
    "end of the integral": (LEJEPA, "task.objectives.sigreg.max_t=5.0"),
    "factor of the statistic": (LEJEPA, "task.objectives.sigreg.num_samples=null"),
    "sigreg": (POINTS, "objective=[keypoint_align,sigreg]"),
    "sigreg of patches": (SIGREG, "task.objectives.sigreg.of=patches"),
    "sigreg of points": (SIGREG, "task.objectives.sigreg.of=keypoints"),
    "deviation of points": (
        (*SIGREG, "task.objectives.sigreg.of=keypoints"),
        "task.objectives.sigreg.keypoint_std=0.3",
    ),
}


class Steps(NamedTuple):
    """What a few steps of training came to."""

    initial: dict[str, torch.Tensor]  # the student's weights
    numbers: tuple[float, ...]  # losses; absolute sums of the student's and the kept backbone


def switched(baseline: tuple[str, ...], switch: str) -> tuple[str, ...]:
    """The baseline's overrides with the switch among them."""
    return (*(o for o in baseline if o.split("=")[0] != switch.split("=")[0]), switch)


@functools.cache
def steps_of(overrides: tuple[str, ...], start: tuple[str, ...] | None = None) -> Steps:
    """Train a few steps.

    Args:
        overrides: of the default.
        start: overrides whose initial weights are taken wherever they have a place, so that a
            head more or less does not change those of the others.
    """
    cfg = composed("pretrain", *SMALL, *overrides)
    drop_unbuilt(cfg.task)
    torch.manual_seed(0)
    task = instantiate(cfg.task)
    if start is not None:
        begin_like(task, steps_of(start).initial)
    initial = {k: v.clone() for k, v in task.state_dict().items() if k[:7] != "teacher"}
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
    # Not those of the heads: a head more or less would differ by itself.
    for backbone in (task.module.student["backbone"], task.module.export_backbone):
        numbers.append(sum(float(p.detach().double().abs().sum()) for p in backbone.parameters()))
    return Steps(initial, tuple(numbers))


def begin_like(task, initial: dict[str, torch.Tensor]) -> None:
    """Student and teacher start from these weights where name and shape are theirs."""
    own = task.state_dict()
    shared = {k: v for k, v in initial.items() if k in own and v.shape == own[k].shape}
    task.load_state_dict(own | shared)
    if task.teacher is not None:
        task.teacher.net.load_state_dict(task.followed().state_dict())


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
        # options that nothing reads
        (PATCHES, "views.num_local=2"),
        (CLASSES, "centerings.sinkhorn.num_iters=3"),
    ],
)
def test_what_switches_nothing_changes_nothing(baseline, nothing):
    """Else the test above could not fail."""
    numbers = steps_of(switched(baseline, nothing), start=baseline).numbers
    assert numbers == steps_of(baseline).numbers
