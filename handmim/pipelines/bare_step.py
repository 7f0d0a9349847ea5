"""A pretraining step by itself, without data, hooks, log and files: to be measured."""

from collections.abc import Callable

import torch
from hydra.utils import instantiate
from lightning.fabric import Fabric
from omegaconf import DictConfig

from handmim.contracts import CropBatch, StepInfo
from handmim.engine.update import Updater
from handmim.utils.config import drop_unbuilt
from handmim.utils.seed import seed_everything, step_generator

CROP_PER_VIEW = 9 / 7  # side of the stored crops: 288 px for views of 224


def bare_step(cfg: DictConfig, fabric: Fabric) -> tuple[Callable[[int], None], float]:
    """One update: views, networks, losses, backward, optimizer, EMA; pictures are noise.

    Args:
        cfg: composed from configs/pretrain.yaml.
        fabric: device and precision.
    Returns: the update, by number of the step, which raises FloatingPointError for a loss that is
        not finite; and trainable parameters in millions.
    """
    seed_everything(cfg.seed)
    drop_unbuilt(cfg.task.losses)
    drop_unbuilt(cfg.task.heads)
    task = instantiate(cfg.task).to(fabric.device)
    views, recipe = instantiate(cfg.views), instantiate(cfg.optim)
    optimizer = recipe.build(task, task.lr_scales(), cfg.machine.precision)
    wrapped, optimizer = fabric.setup(task, optimizer)
    updater = Updater(fabric, wrapped, optimizer, recipe, batch_size=cfg.trainer.batch_size)
    side = round(cfg.task.backbone.img_px * CROP_PER_VIEW)
    shape = (cfg.trainer.batch_size, 3, side, side)
    crops = CropBatch(torch.randint(0, 256, shape, dtype=torch.uint8).to(fabric.device))

    def step(number: int) -> None:
        info = StepInfo(number, cfg.trainer.max_steps)
        updater.schedule(info)
        result = updater.backward(views(crops, step_generator(0, "prepare", number, 0), info), info)
        if not bool(result.loss.isfinite()):
            raise FloatingPointError(f"the loss is not finite at step {number} (optim.lr.start)")
        updater.clip()
        updater.update()
        task.after_step(info)

    return step, sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6
