"""How every pipeline opens its run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from handmim.engine.checkpoint import LAST
from handmim.engine.trainer import FitResult
from handmim.models.vit import ViT
from handmim.models.weights.files import read_weights
from handmim.pipelines.preflight import WEIGHTS, preflight
from handmim.pipelines.trial import try_parts
from handmim.utils.config import build, resolved
from handmim.utils.processes import DONE
from handmim.utils.run import Run

BACKBONE = "backbone.safetensors"


def setup_training(cfg: DictConfig) -> tuple[Run, Any]:
    """A run and its task, which is built before there is a folder; arguments and errors as
    `setup_run`."""
    tasks: list[nn.Module] = []
    run = setup_run(cfg, resume=cfg.resume, before_folder=lambda: tasks.append(build(cfg.task)))
    if run.compile:
        compile_backbones(tasks[0])
    return run, tasks[0]


def setup_run(
    cfg: DictConfig,
    *,
    resume: str = "never",
    before_folder: Callable[[], object] | None = None,
) -> Run:
    """The run of a composed config, recorded with what it was asked for.

    Args:
        cfg: with name, seed, overwrite, paths.run_root and machine.
        resume: never, auto or a checkpoint.
        before_folder: see `Run.start`.
    Raises: ValueError naming what only the user knows, files that are not there, and damaged
        initial weights; what parts of the config raise.
    """
    config = resolved(cfg)
    preflight(cfg)
    for source in [cfg[key] for key in WEIGHTS if cfg.get(key) is not None]:
        read_weights(source)  # refused before there is a folder
    if "trainer" in cfg:
        try_parts(cfg)
    folder = Path(cfg.paths.run_root) / cfg.name
    flags = {"resume": resume, "overwrite": cfg.overwrite, "before_folder": before_folder}
    return Run.start(cfg.name, folder, cfg.seed, config, **cfg.machine, **flags)


def export(run: Run, task: nn.Module, seed: int, result: FitResult) -> Path | None:
    """Write the backbone of a finished run; the main process does.

    Args:
        run: devices and folder.
        task: with `export_backbone`.
        seed: of the run, kept in the file.
        result: how training ended.
    Returns: its path; None of a run that was stopped, whose last.pt may be resumed or taken as
        initial weights.
    """
    path, last = run.dir / BACKBONE, run.dir / LAST
    if result.exit_code != DONE:
        run.log.warning("no %s: the run is not finished; its weights are in %s", BACKBONE, last)
        return None
    if run.is_main:
        backbone: ViT = task.export_backbone  # type: ignore[assignment]
        backbone.export(path, {"step": str(result.step), "seed": str(seed)})
        run.log.info("exported backbone: %s (loads with timm.create_model)", path)
    return path


def compile_backbones(task: nn.Module) -> None:
    """Let torch.compile fuse the blocks of every backbone of a task."""
    for module in task.modules():
        if isinstance(module, ViT):
            module.compile_blocks()
