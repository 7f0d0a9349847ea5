"""What several processes train: overrides of every method, head and loss, by name."""

from pathlib import Path

import torch
from hydra import initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from handmim.pipelines.dry_run import noise_hands
from handmim.types import CropBatch
from handmim.utils.config import drop_unbuilt
from handmim.utils.entry import compose
from handmim.utils.paths import options_of
from handmim.utils.seed import step_generator

REPO = Path(__file__).parents[2]
TINY = (
    "backbone=vit_nano_p8",
    "task.backbone.img_px=32",
    "task.backbone.size={embed_dim:24,depth:2,num_heads:2}",
    f"paths.data_dir={REPO / 'data'}",
)
POINTS = ("keypoint_align", "point_hog", "point_recon", "keypoint_agree")
SWAV = "task.objectives.swav"
# Heads of about 0.83 M parameters.
SMALL = {
    "decoder_small": (
        "head=decoder", "task.head.width=128", "task.head.num_heads=4", "task.head.dropout=0",
    ),
    "iterative_small": ("head=iterative", "task.head.hidden_dim=728", "task.head.dropout=0"),
    "plain_small": ("head=plain", "task.head.hidden_dim=768", "task.head.dropout=0"),
}  # fmt: skip
Case = tuple[str, tuple[str, ...]]
PLAIN, ALIGN = "method=handmim-plain", "task.objectives.keypoint_align"


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for method in options_of("method"):
        found[f"method={method}"] = "pretrain", (f"method={method}",)
    for name in options_of("objective"):
        with_points = f"keypoint_align,{name}" if name in POINTS[1:] else name
        overrides = PLAIN, f"objective=[{with_points}]", "views.warp_ndc=0.05"
        found[f"objective={name}"] = "pretrain", overrides
    for loss in options_of("loss"):
        found[f"loss={loss}"] = "finetune", _hand_loss(loss)
    for group, names, rest in (
        ("keypoint_head", options_of("keypoint_head"), "objective=[keypoint_align]"),
        ("centering", ("ema", "sinkhorn"), "objective=[patch_distill,class_distill]"),
    ):
        for name in names:
            found[f"{group}={name}"] = "pretrain", (PLAIN, f"{group}={name}", rest)
    for key, values, chosen in (
        ("pixel_recon.head", ("decoder", "linear"), "pixel_recon"),
        ("keypoint_align.disc", ("nce", "none", "proto"), "keypoint_align"),
        ("keypoint_align.predictor", ("true", "false"), "keypoint_align"),
        ("point_hog.head", ("gaussians", "mlp"), "keypoint_align,point_hog"),
    ):
        for value in values:
            overrides = PLAIN, f"objective=[{chosen}]", f"task.objectives.{key}={value}"
            found[f"{key}={value}"] = "pretrain", overrides
    for head in options_of("head"):
        overrides = (f"head={head}",)
        if head == "direct":
            overrides += ("task=keypoints", "loss=[direct_keypoints]")
        found[f"head={head}"] = "finetune", overrides
    for head, overrides in SMALL.items():
        found[f"head={head}"] = "finetune", overrides
    return found | MORE


def _hand_loss(loss: str) -> tuple[str, ...]:
    overrides = {
        "joints3d_abs": ("task.head.camera=pinhole",),
        "heatmaps": ("task.head.heatmaps=true",),
        "silhouette": ("task.head.silhouette=true",),
    }.get(loss, ())
    beside = f"{loss},joints2d" if loss in ("heatmaps", "silhouette") else loss
    return ("head=pymaf_small", f"loss=[{beside}]", *overrides)


# Settings under which parameters once took no part, or branches are drawn at random.
MORE: dict[str, Case] = {
    "taps below the top": (
        "pretrain",
        (PLAIN, "objective=[pixel_recon]", "task.objectives.pixel_recon.tap_layers=[0.5]"),
    ),
    "class tokens dropped along": ("pretrain", ("method=dino", "task.mask_mode=drop")),
    "projection of classes alone": (
        "pretrain", ("method=dino", "task.objectives.class_distill.head=own"),
    ),
    "prototypes without a term": (
        "pretrain",
        (PLAIN, "objective=[keypoint_align]", f"{ALIGN}.disc=proto", f"{ALIGN}.parts=reg"),
    ),
    "frozen prototypes": ("pretrain", ("method=ibot", "task.freeze_prototypes_steps=2")),
    "drop path": ("pretrain", ("method=handmim", "task.backbone.drop_path_rate=0.7")),
    "local crops": ("pretrain", ("method=ibot", "views.num_local=2", "views.local_px=16")),
    "local crops of SwAV, a queue": (
        "pretrain",
        ("method=swav", "views.num_local=2", "views.local_px=16", f"{SWAV}.queue_size=24"),
    ),
    "local crops of LeJEPA": (
        "pretrain", ("method=lejepa", "views.num_local=2", "views.local_px=16"),
    ),
    "SIGReg of patches": (
        "pretrain", (PLAIN, "objective=[sigreg]", "task.objectives.sigreg.of=patches"),
    ),
    "SIGReg of points": (
        "pretrain",
        (PLAIN, "objective=[keypoint_align,sigreg]", "task.objectives.sigreg.of=keypoints"),
    ),
    "some views masked": ("pretrain", (PLAIN, "views.masks.masked_share=0.3")),
    "in parts": ("pretrain", ("method=handmim", "trainer.accumulate=2")),
    "in parts, batch norm": ("pretrain", ("method=peclr", "trainer.accumulate=2")),
    "neck of two blocks": (
        "pretrain",
        (
            PLAIN,
            "objective=[pyramid_hog]",
            "task.heads.neck={pyramid: deconv, norm: batch, taps: [1]}",
        ),
    ),
    "trained blocks": ("finetune", ("head=pymaf_small", "task.trained_blocks=1")),
    "head first": ("finetune", ("head=pymaf_small", "task.head_first=0.5")),  # 2 of 3 steps
    "average": ("finetune", (*SMALL["plain_small"], "task.average=0.9")),
}  # fmt: skip
# Parts of batches and draws of each process alone: two processes differ from one.
NOT_SAME = ("drop path", "in parts", "in parts, batch norm")
# A part without a loss: it cannot be trained by several processes.
IDLE: dict[str, Case] = {
    "idle part": (
        "pretrain",
        (
            PLAIN,
            "objective=[keypoint_align]",
            f"{ALIGN}.predictor=true",
            f"{ALIGN}.reg_weight=0",
            f"{ALIGN}.disc_weight=0",
        ),
    ),
}
QUICK = (
    "method=mae", "pixel_recon.head=decoder", "method=handmim", "method=peclr", "head=pymaf_exact",
    "drop path", "head first",
)  # fmt: skip


def composed(case: Case) -> DictConfig:
    root, overrides = case
    data = ("data=folder", "data.root=x") if root == "pretrain" else ()
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        cfg = compose(root, [*TINY, *data, *overrides])
    drop_unbuilt(cfg.task)
    sizes = {"num_prototypes": 32, "hidden_dim": 32, "bottleneck_dim": 16}
    if "projection" in cfg.task.get("heads", {}):
        cfg.task.heads.projection.update(sizes)
    if "embedding" in cfg.task.get("heads", {}):
        cfg.task.heads.embedding.hidden_dim = 32
    if "keypoint_align" in cfg.task.get("objectives", {}):
        OmegaConf.update(cfg, f"{ALIGN}.prototypes", sizes, force_add=True)
    if "dropout" in cfg.task.get("head", {}):
        cfg.task.head.dropout = 0.0  # drawn by each process for itself
    return cfg


def batch_of(cfg: DictConfig, num: int, step: int, part: int, info):
    """An augmented batch of noise; `part` numbers those of one step."""
    torch.manual_seed(1000 * step + part)
    image = torch.randint(0, 256, (num, 3, 40, 40), dtype=torch.uint8)
    raw = CropBatch(image) if "views" in cfg else noise_hands(image)
    prepare = instantiate(cfg.views if "views" in cfg else cfg.augment)
    return prepare(raw, step_generator(0, "prepare", step, part), info)
