"""Supervised regression from its composed config to the last validation's metrics."""

from collections import defaultdict, deque
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from handmim.data.datasets import fingerprint_of, hand_sha256_of
from handmim.data.loader import batches, collate_hands
from handmim.engine.checkpoint import BEST, LAST, checkpoints_of
from handmim.engine.trainer import FitResult, Trainer
from handmim.engine.workers import StopSignals, Watchdog
from handmim.evaluation.predictor import check_same_hand
from handmim.evaluation.scoring import EvalHook
from handmim.models.weights.load import load_initial
from handmim.pipelines.setup_run import LABELS, choose_labels, export, setup_training
from handmim.utils.config import build
from handmim.utils.json_files import read_rows
from handmim.utils.processes import DONE


class Finetuned(NamedTuple):
    """What fine-tuning leaves behind."""

    run_dir: Path
    backbone: Path | None  # the fine-tuned one; None of a run that was stopped
    result: FitResult
    metrics: dict[str, float]  # of the last validation
    num_labels: int
    best_metrics: dict[str, float]  # of the validation that best.pt was kept for, where it was


def finetune(cfg: DictConfig) -> Finetuned:
    """Assemble, start at the mean of the labels, train. Raises: ValueError."""
    if "val" not in cfg.data:
        raise ValueError(
            "fine-tuning requires labelled images, these have no labels: choose data=synthetic, "
            "freihand, ho3d_v3 or keypoints"
        )
    with StopSignals():
        return _finetune(cfg)


def _finetune(cfg: DictConfig) -> Finetuned:
    run, task = setup_training(cfg)
    load_initial(task.backbone, cfg.init_from)
    run.log.info("backbone: %s", cfg.init_from or "random weights (init_from=null)")
    augment, num_workers = build(cfg.augment), cfg.trainer.num_workers
    with run.fabric.rank_zero_first():  # one process renders what is not in the cache yet
        train, val = build(cfg.data.train), build(cfg.data.val)
    for name, part in (("data.train", train), ("data.val", val)):
        check_same_hand(task.hand_metadata().get("hand_sha256"), hand_sha256_of(part), name)
    chosen = choose_labels(train, *(cfg[key] for key in LABELS), seed=cfg.seed)
    train = chosen.samples
    sources = checkpoints_of(run.dir, cfg.resume)
    # A run that goes on has its list, and whether it may go on is not known yet.
    if run.is_main and (not sources or sources[0].parent.resolve() != run.dir.resolve()):
        chosen.write(run.dir)
    meta = task.hand_metadata() | chosen.facts | {"data_sha256": fingerprint_of(train)}
    if cfg.trainer.keep_best is not None:  # it is chosen by the validation
        meta["val_sha256"] = fingerprint_of(val)
    if not sources:  # else its state holds them already
        with Watchdog(run):
            spared = {"num_workers": num_workers, "max_unreadable": cfg.trainer.max_unreadable}
            task.start_from_labels(train, augment, run.device, **spared)
            deque(batches(val, 64, num_workers), maxlen=0)  # else the first validation refuses it
    hooks: Any = [EvalHook(val, augment, cfg.eval_every, num_workers=num_workers)]
    parts = (run, task, train, collate_hands, augment, build(cfg.optim))
    result = Trainer(**cfg.trainer).fit(*parts, hooks=hooks, resume=cfg.resume, meta=meta)
    path = export(run, task, cfg.seed, result)
    if result.exit_code == DONE:
        scored = run.dir / (LAST if result.best is None else BEST)
        run.log.info("score it: python tools/eval.py checkpoint=%s", scored)
    logged = validations(run.dir)
    best = {} if result.best is None else logged.get(result.best.step, {})
    last = list(logged.values())[-1] if logged else {}
    return Finetuned(run.dir, path, result, last, chosen.num, best)


def validations(run_dir: Path) -> dict[int, dict[str, float]]:
    """Metrics of the validations that a run logged, without their `val/`, by step."""
    logged: dict[int, dict[str, float]] = defaultdict(dict)
    for row in read_rows(run_dir / "scalars.jsonl"):
        if metrics := {k.removeprefix("val/"): v for k, v in row.items() if k.startswith("val/")}:
            logged[int(row["step"])] |= metrics
    return logged
