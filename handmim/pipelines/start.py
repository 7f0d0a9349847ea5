"""How every pipeline opens its run."""

from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from handmim.models.vit import ViT
from handmim.pipelines.preflight import preflight
from handmim.utils.config import resolved
from handmim.utils.run import Run


def start_run(cfg: DictConfig, *, resume: str = "never") -> Run:
    """The run of a composed config, recorded with what it was asked for.

    Args:
        cfg: with name, seed, overwrite, paths.run_root and machine.
        resume: never, auto or a checkpoint.
    Raises: ValueError naming what only the user knows, and files that are not there.
    """
    config = resolved(cfg)
    preflight(cfg)
    folder = Path(cfg.paths.run_root) / cfg.name
    flags = {"resume": resume, "overwrite": cfg.overwrite}
    return Run.start(cfg.name, folder, cfg.seed, config, **cfg.machine, **flags)


def compile_backbones(task: nn.Module) -> None:
    """Let torch.compile fuse the blocks of every backbone of a task."""
    for module in task.modules():
        if isinstance(module, ViT):
            module.compile_blocks()
