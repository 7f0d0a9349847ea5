"""Scoring fine-tuned checkpoints, or an existing submission file."""

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from handmim.data.datasets import hand_sha256_of
from handmim.data.label_files import find_ground_truth, read_ground_truth
from handmim.engine.saved_config import require
from handmim.engine.workers import Watchdog
from handmim.evaluation.camera_space import predict_camera_hands
from handmim.evaluation.load_model import (
    build_part,
    check_same_hand,
    hand_config,
    load_model,
    read_model_checkpoint,
)
from handmim.evaluation.multi_checkpoint import check_comparable, expanded
from handmim.evaluation.official import score_file, submit
from handmim.evaluation.scoring import PREDICTORS, score
from handmim.pipelines.setup_run import compile_backbones, setup_run
from handmim.reports.averages import write_averages
from handmim.reports.scores import TIME, TTA, write_report
from handmim.utils.config import build, resolved, set_everywhere
from handmim.utils.run import Run
from handmim.utils.timer import Timer


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score one or the other.

    Args:
        cfg: composed from configs/eval.yaml.
    Returns: flat figures, with the official ones under "official" where there are any and those of
        test-time augmentation under "tta"; of several checkpoints their `summary`.
    Raises: ValueError unless exactly one of checkpoint and predictions is given.
    """
    if (cfg.checkpoint is None) == (cfg.predictions is None):
        raise ValueError("give either checkpoint=FILE.pt or predictions=pred.json")
    if cfg.predictions is not None:
        return evaluate_file(cfg)
    if cfg.predictor not in PREDICTORS:
        raise ValueError(f"predictor must be one of {sorted(PREDICTORS)}, got {cfg.predictor!r}")
    given = [cfg.checkpoint] if isinstance(cfg.checkpoint, str) else list(cfg.checkpoint)
    paths = expanded(given)
    if len(paths) > 1:
        return evaluate_several(cfg, paths)
    cfg.checkpoint = paths[0]
    return evaluate_model(cfg)


def evaluate_file(cfg: DictConfig) -> dict[str, Any]:
    """Score a submission file."""
    if cfg.get("data") is None or cfg.data.get("benchmark") is None:
        raise ValueError("predictions= needs the benchmark: data=freihand data.root=DIR, ...")
    if cfg.tta.views is not None:
        raise ValueError("a submission file holds one answer: tta needs a checkpoint (tta=none)")
    run = setup_run(cfg)
    truth = read_ground_truth(cfg.data.root, cfg.data.cache_dir)
    report = score_file(
        cfg.predictions,
        cfg.data.benchmark,
        truth,
        mb_per_sample=cfg.predictions_mb_per_sample,
    )
    write_report(run, cfg.predictions, report)
    return report


def evaluate_several(cfg: DictConfig, paths: list[str]) -> dict[str, Any]:
    """Score each checkpoint as by itself, below one folder; then a table of all and their mean.

    Args:
        cfg: composed from configs/eval.yaml.
        paths: of the checkpoints.
    Raises: ValueError, before anything is scored, for checkpoints that cannot be averaged.
    """
    facts = check_comparable(paths, cfg.get("data"))
    run, reports = setup_run(cfg), []
    for number, path in enumerate(paths, start=1):
        part = copy.deepcopy(cfg)
        part.checkpoint = path
        reports.append(evaluate_model(part, (run, str(number))))
    return write_averages(run, facts, reports)


def data_of(saved: dict[str, Any], cfg: DictConfig) -> Any:
    """Config of the checkpoint's own data, which is read where it says; what is written goes where
    the user's own config says.

    Raises: ValueError naming what it lacks.
    """
    path = cfg.checkpoint
    require(saved, {"config.data": dict}, path)
    part = "test" if saved["config"]["data"].get("test") else "val"
    require(saved, {f"config.data.{part}": dict, f"config.data.{part}._target_": str}, path)
    data = OmegaConf.create(saved["config"]["data"])
    if data.get("benchmark") is not None:
        require(saved, {"config.data.root": str, "config.data.placement": str}, path)
    data.cache_dir = str(Path(cfg.paths.data_dir) / "cache")
    set_everywhere(data, "cache_dir", data.cache_dir)
    set_everywhere(data, "hand_path", cfg.hand.path)
    return data


def evaluate_model(cfg: DictConfig, part_of: tuple[Run, str] | None = None) -> dict[str, Any]:
    """Rebuild a model from its checkpoint and score it.

    Args:
        cfg: composed from configs/eval.yaml, with one checkpoint; completed from it in place.
        part_of: a run, and the name of the folder below it that takes the results; None starts a
            run.
    """
    tta = None if cfg.tta.views is None else build(cfg.tta.views)
    saved = read_model_checkpoint(cfg.checkpoint)
    OmegaConf.set_struct(cfg, False)  # its own words are checked by now
    whose_hand = "given" if cfg.hand.get("path") is not None else "the checkpoint's own (hand.path)"
    cfg.hand = hand_config(saved, cfg.hand)
    own_data = cfg.get("data") is None
    if own_data:
        cfg.data = data_of(saved, cfg)
    run = setup_run(cfg) if part_of is None else part_of[0].below(part_of[1], resolved(cfg))
    run.log.info("hand model: %s, %s", cfg.hand.path, whose_hand)
    if own_data:
        words = "data: the checkpoint's own (root %s), caches below %s (data=..., paths.data_dir)"
        run.log.info(words, cfg.data.get("root"), cfg.data.cache_dir)
    task, augment = load_model(saved, cfg.hand, cfg.checkpoint)
    if run.compile:
        compile_backbones(task)
    with run.fabric.rank_zero_first():
        part = cfg.data.get("test") or cfg.data.val
        dataset = build_part(part, cfg.checkpoint, "data") if own_data else build(part)
    check_same_hand(task.hand_sha256, hand_sha256_of(dataset), "the data")
    task.to(run.device)
    predict = PREDICTORS[cfg.predictor](task)
    how = {"faces": task.faces, "batch_size": cfg.batch_size, "num_workers": cfg.num_workers}
    how |= {"autocast": run.fabric.autocast}

    def scored(folder: str, **more: Any) -> tuple[dict[str, Any], Any]:
        if cfg.data.get("benchmark") is None or task.faces is None:  # submissions need meshes
            return score(predict, dataset, augment, run.device, **how, **more)
        more["placement"] = cfg.data.placement
        hands = predict_camera_hands(predict, dataset, augment, run.device, **how, **more)
        truth = find_ground_truth(cfg.data.root, cfg.data.cache_dir)
        return submit(run, cfg.data.benchmark, hands, truth, folder), hands.sheet

    watch = Timer(run.device)
    with Watchdog(run):
        report, sheet = scored(".", num_pictures=cfg.num_pictures, stopwatch=watch)
    if tta is not None:
        report[TIME] = watch.seconds_per_item * 1e3
        watch = Timer(run.device)
        with Watchdog(run):
            block = scored(TTA, tta=tta, stopwatch=watch)[0]
        block |= {"num_looks": len(tta.views), TIME: watch.seconds_per_item * 1e3}
        report[TTA] = block
    write_report(run, f"{cfg.predictor} of {cfg.checkpoint}", report, sheet)
    return report
