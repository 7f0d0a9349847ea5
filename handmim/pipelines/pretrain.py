"""Pretraining from its composed config to the exported backbone."""

from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from handmim.data.datasets import fingerprint_of, hand_sha256_of
from handmim.data.loader import collate_crops
from handmim.engine.checkpoint import checkpoints_of
from handmim.engine.trainer import FitResult, Trainer
from handmim.engine.workers import StopSignals
from handmim.pipelines.setup_run import export, setup_training
from handmim.types import Task
from handmim.utils.config import build
from handmim.utils.run import Run


class Pretrained(NamedTuple):
    """What pretraining leaves behind."""

    run_dir: Path
    backbone: Path | None  # of the side that is kept (task.export); None where a run was stopped
    result: FitResult


def pretrain(cfg: DictConfig) -> Pretrained:
    """Assemble, train, export; train=false exports the initial weights. Raises: ValueError."""
    with StopSignals():
        run, task = setup_training(cfg)
        if cfg.init is not None:
            task.load_initial(cfg.init)
        if cfg.train:
            result = _train(cfg, run, task)
        else:
            if cfg.init is None:
                run.log.warning("train=false and init=null: random weights are exported")
            if checkpoints_of(run.dir, cfg.resume):
                raise FileExistsError(
                    f"{run.dir} holds a trained run, whose weights train=false would replace with "
                    "initial ones: take another name (name=...)"
                )
            run.write_start()
            result = FitResult(0, False, {})
        return Pretrained(run.dir, export(run, task, cfg.seed, result), result)


def _train(cfg: DictConfig, run: Run, task: Task) -> FitResult:
    make_views = build(cfg.views)
    with run.fabric.rank_zero_first():  # one process renders what is not in the cache yet
        dataset = build(cfg.data.train)
        if len(dataset) < 2:
            raise ValueError(f"pretraining compares images: got {len(dataset)}, needs 2 (data)")
        hooks = [] if cfg.probe.hook is None else [build(cfg.probe.hook)]
    if cfg.collapse is not None:
        hooks.append(build(cfg.collapse)(dataset, make_views))
    # The hand is that of rendered sets.
    meta = {"hand_sha256": hand_sha256_of(dataset), "data_sha256": fingerprint_of(dataset)}
    parts = (run, task, dataset, collate_crops, make_views, build(cfg.optim))
    return Trainer(**cfg.trainer).fit(*parts, hooks=hooks, resume=cfg.resume, meta=meta)
