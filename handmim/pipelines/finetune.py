"""Supervised regression from its composed config to the last validation's metrics."""

from collections import deque
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from handmim.data.datasets import fingerprint_of, hand_sha256_of
from handmim.data.loader import batches, collate_hands
from handmim.engine.checkpoint import BEST, LAST, checkpoints_of
from handmim.engine.loop import FitResult
from handmim.engine.stop import StopSignals, Watchdog
from handmim.engine.trainer import Trainer
from handmim.evaluation.predictor import check_same_hand
from handmim.evaluation.scoring import EvalHook
from handmim.models.weights.load import load_initial
from handmim.pipelines.labels import choose_labels
from handmim.pipelines.setup_run import export, setup_training
from handmim.utils.config import build
from handmim.utils.processes import DONE
from handmim.utils.rows import read_rows


class Finetuned(NamedTuple):
    """What fine-tuning leaves behind."""

    run_dir: Path
    backbone: Path | None  # the fine-tuned one; None of a run that was stopped
    result: FitResult
    metrics: dict[str, float]  # of the last validation
    num_labels: int
    best_metrics: dict[str, float]  # of the validation that best.pt was kept for, where it was


def finetune(cfg: DictConfig) -> Finetuned:
    """Assemble, start at the mean of the labels, train.

    Args:
        cfg: composed from configs/finetune.yaml.
    Raises: ValueError when more than one of num_labels, label_fraction and label_ids is given.
    """
    with StopSignals():
        return _finetune(cfg)


def _finetune(cfg: DictConfig) -> Finetuned:
    run, task = setup_training(cfg)
    load_initial(task.backbone, cfg.init_from)
    run.log.info("backbone: %s", cfg.init_from or "random weights (init_from=null)")
    trainer = Trainer(**cfg.trainer)
    trainer.check_batch(run.world_size)
    labels = {"num": cfg.num_labels, "fraction": cfg.label_fraction, "file": cfg.label_ids}
    augment = build(cfg.augment)
    optimizer = build(cfg.optim)
    with run.fabric.rank_zero_first():  # one process renders what is not in the cache yet
        train, val = build(cfg.data.train), build(cfg.data.val)
    for name, part in (("data.train", train), ("data.val", val)):
        check_same_hand(task.hand_sha256, hand_sha256_of(part), name)
    chosen = choose_labels(train, **labels, seed=cfg.seed)
    train = chosen.samples
    sources = checkpoints_of(run.dir, cfg.resume)
    # A run that goes on has its list, and whether it may go on is not known yet.
    if run.is_main and (not sources or sources[0].parent.resolve() != run.dir.resolve()):
        chosen.write(run.dir)
    data = {"data_sha256": fingerprint_of(train)}
    if cfg.trainer.keep_best is not None:  # it is chosen by the validation
        data["val_sha256"] = fingerprint_of(val)
    workers = cfg.trainer.num_workers
    if not sources:  # else its state holds them already
        with Watchdog(run):
            spared = {"num_workers": workers, "max_unreadable": cfg.trainer.max_unreadable}
            task.start_from_labels(train, augment, run.device, **spared)
            deque(batches(val, 64, workers), maxlen=0)  # else the first validation would refuse it

    result = trainer.fit(
        run,
        task,
        train,
        collate_hands,
        augment,
        optimizer,
        hooks=[EvalHook(val, augment, cfg.eval_every, num_workers=workers)],
        resume=cfg.resume,
        meta=task.hand_metadata() | chosen.facts | data,
    )
    path = export(run, task, cfg.seed, result)
    if result.exit_code == DONE:
        scored = run.dir / (LAST if result.best is None else BEST)
        run.log.info("score it: python tools/eval.py checkpoint=%s", scored)
    best = {} if result.best is None else validation_at(run.dir, result.best.step)
    return Finetuned(run.dir, path, result, last_validation(run.dir), chosen.num, best)


def last_validation(run_dir: Path) -> dict[str, float]:
    """Metrics of the last validation that a run logged, without their `val/`; none gives none."""
    rows = [row for row in read_rows(run_dir / "scalars.jsonl") if _metrics(row)]
    return _metrics(rows[-1]) if rows else {}


def validation_at(run_dir: Path, step: int) -> dict[str, float]:
    """Metrics of the validation that a run logged after so many steps, without their `val/`."""
    rows = [row for row in read_rows(run_dir / "scalars.jsonl") if row["step"] == step]
    return {name: value for row in rows for name, value in _metrics(row).items()}


def _metrics(row: dict[str, float]) -> dict[str, float]:
    return {k.removeprefix("val/"): v for k, v in row.items() if k.startswith("val/")}
