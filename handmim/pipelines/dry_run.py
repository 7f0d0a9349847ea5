"""One training step on images of noise: what a config costs, and whether it trains."""

from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig

from handmim.data.unlabeled import JointBatch
from handmim.engine.step import TrainStep
from handmim.hand.io import NUM_VERTS
from handmim.hand.skeleton import NUM_JOINTS
from handmim.pipelines.train import compile_backbones, join_unlabeled, reads_crops
from handmim.types import CropBatch, HandBatch, StepInfo, StepResult
from handmim.utils.config import build, drop_unbuilt
from handmim.utils.seed import seed_everything

CROP_PER_VIEW = 9 / 7  # side of the stored crops: 288 px for views of 224


def dry_run_step(cfg: DictConfig, fabric: Fabric) -> tuple[Callable[[int], None], float]:
    """One training step on images of noise: the update by number of the step, which raises
    FloatingPointError for a loss that is not finite; and trainable parameters in millions."""
    seed_everything(cfg.seed)
    drop_unbuilt(cfg.task)
    task = build(cfg.task).to(fabric.device)
    if cfg.machine.compile:
        compile_backbones(task)
    prepare = build(cfg.views if "views" in cfg else cfg.augment)
    side = round(cfg.task.backbone.img_px * CROP_PER_VIEW)
    image = torch.randint(0, 256, (cfg.trainer.batch_size, 3, side, side), dtype=torch.uint8)
    noise: Any = CropBatch(image) if "views" in cfg else noise_hands(image)
    if (settings := cfg.get("unlabeled")) is not None and reads_crops(settings):
        collate, prepare = join_unlabeled(settings, task, prepare)
        noise = JointBatch(noise, CropBatch(image[: collate.num_of(len(image))]), {})
    sizes = {"batch_size": cfg.trainer.batch_size, "accumulate": cfg.trainer.accumulate}
    train_step = TrainStep(fabric, task, build(cfg.optim), prepare=prepare, **sizes)
    batch = fabric.to_device(noise)

    def check(info: StepInfo, batch: Any, result: StepResult, norm: Any) -> None:
        if not bool(result.loss.isfinite()):
            raise FloatingPointError(f"the loss is not finite at step {info.step} (optim.lr.start)")

    def step(number: int) -> None:
        train_step(batch, StepInfo(number, cfg.trainer.max_steps), check)

    return step, sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6


def noise_hands(image: torch.Tensor) -> HandBatch:
    """[B, 3, S, S] uint8 images with labels of every kind: clouds of points before the camera."""
    b, side = len(image), image.shape[-1]
    yes = torch.ones(b, dtype=torch.bool)
    K = torch.tensor([[2.0 * side, 0.0, side / 2], [0.0, 2.0 * side, side / 2], [0.0, 0.0, 1.0]])
    points = 0.05 * torch.randn(b, NUM_JOINTS + NUM_VERTS, 3) + torch.tensor([0.0, 0.0, 0.6])
    joints, verts = points.split([NUM_JOINTS, NUM_VERTS], dim=1)
    seen = yes[:, None].expand(b, NUM_JOINTS)
    return HandBatch(
        image=image,
        was_left=~yes,
        joint_convention=torch.zeros(b, dtype=torch.int64),
        K_crop_px=K.expand(b, 3, 3),
        has_K=yes,
        kp2d_crop_ndc=4.0 * joints[..., :2] / joints[..., 2:],
        kp2d_valid=seen,
        kp2d_conf=seen.float(),
        joints_cam_m=joints,
        joints_valid=seen,
        verts_cam_m=verts,
        has_verts=yes,
        rotmats=torch.eye(3).expand(b, 16, 3, 3),
        betas=torch.zeros(b, 10),
        has_mano=yes,
    )
