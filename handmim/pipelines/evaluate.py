"""Scoring fine-tuned checkpoints, or an existing submission file."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from handmim.data.datasets import hand_sha256_of
from handmim.data.label_files import find_ground_truth, read_ground_truth
from handmim.engine.checkpoint import require
from handmim.engine.workers import Watchdog
from handmim.evaluation.inference import SOURCES, InferenceModule
from handmim.evaluation.predictor import (
    build_part,
    check_same_hand,
    hand_config,
    load_model,
    read_model_checkpoint,
)
from handmim.evaluation.report import (
    TIME,
    TTA,
    benchmark_of,
    check_comparable,
    expanded,
    score_file,
    submit,
    write_averages,
    write_report,
)
from handmim.evaluation.scoring import predict_camera_hands, score
from handmim.pipelines.train import setup_run
from handmim.utils.arguments import one_of
from handmim.utils.config import build, resolved, set_everywhere
from handmim.utils.run import Run
from handmim.utils.timer import Stages


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Flat metrics, official ones under "official", those of test-time augmentation under "tta";
    the `summary` of several checkpoints below one folder. Raises: ValueError unless one of
    checkpoint and predictions is given, and for checkpoints that cannot be averaged."""
    if (cfg.checkpoint is None) == (cfg.predictions is None):
        raise ValueError("give either checkpoint=FILE.pt or predictions=pred.json")
    if cfg.predictions is not None:
        if cfg.get("data") is None or cfg.data.get("benchmark") is None:
            raise ValueError("predictions= needs the benchmark: data=freihand data.root=DIR, ...")
        if cfg.tta is not None:
            raise ValueError("a submission file holds one prediction: tta=null")
        run, path = setup_run(cfg), cfg.predictions
        gt = read_ground_truth(cfg.data.root, cfg.data.cache_dir)
        benchmark = benchmark_of(cfg.data.benchmark, len(gt[0]))
        report = score_file(path, benchmark, gt, path, cfg.predictions_mb_per_sample)
        write_report(run, path, report)
        return report
    one_of("predictor", cfg.predictor, SOURCES)
    paths = expanded([cfg.checkpoint] if isinstance(cfg.checkpoint, str) else list(cfg.checkpoint))
    if len(paths) == 1:
        cfg.checkpoint = paths[0]
        return evaluate_model(cfg)
    facts = check_comparable(paths, cfg.get("data"))
    run, reports = setup_run(cfg), []
    for number, path in enumerate(paths, start=1):
        part = copy.deepcopy(cfg)
        part.checkpoint = path
        reports.append(evaluate_model(part, (run, str(number))))
    return write_averages(run, facts, reports)


def data_of(saved: dict[str, Any], cfg: DictConfig) -> Any:
    """Config of the checkpoint's own data; what is written goes where the user's own config names.
    Raises: ValueError naming what it lacks."""
    needed = partial(require, saved, path=cfg.checkpoint)
    needed({"config.data": dict})
    part = "test" if saved["config"]["data"].get("test") else "val"
    needed({f"config.data.{part}": dict, f"config.data.{part}._target_": str})
    data = OmegaConf.create(saved["config"]["data"])
    if data.get("benchmark") is not None:
        needed({"config.data.root": str, "config.data.placement": str})
    data.cache_dir = str(Path(cfg.paths.data_dir) / "cache")
    set_everywhere(data, "cache_dir", data.cache_dir)
    set_everywhere(data, "hand_path", cfg.hand.path)
    return data


def evaluate_model(cfg: DictConfig, part_of: tuple[Run, str] | None = None) -> dict[str, Any]:
    """Rebuild a model from its one checkpoint, which completes the config in place, and score it;
    results go to a new run, or to a folder below one."""
    views = None if cfg.tta is None else build(cfg.tta_views[cfg.tta])
    saved = read_model_checkpoint(cfg.checkpoint)
    OmegaConf.set_struct(cfg, False)  # its own overrides are checked by now
    whose_hand = "given" if cfg.hand.get("path") is not None else "the checkpoint's own (hand.path)"
    cfg.hand = hand_config(saved, cfg.hand)
    own_data = cfg.get("data") is None
    if own_data:
        cfg.data = data_of(saved, cfg)
    run = setup_run(cfg) if part_of is None else part_of[0].below(part_of[1], resolved(cfg))
    run.log.info("hand model: %s, %s", cfg.hand.path, whose_hand)
    if own_data:
        text = "data: the checkpoint's own (root %s), caches below %s (data=..., paths.data_dir)"
        run.log.info(text, cfg.data.get("root"), cfg.data.cache_dir)
    task, augment = load_model(saved, cfg.hand, cfg.checkpoint)
    with run.fabric.rank_zero_first():
        part = cfg.data.get("test") or cfg.data.val
        dataset = build_part(part, cfg.checkpoint, "data") if own_data else build(part)
    check_same_hand(task.hand_metadata().get("hand_sha256"), hand_sha256_of(dataset), "the data")
    how = {"autocast": run.fabric.autocast, "source": cfg.predictor}
    module = partial(InferenceModule, task, augment, run.device, **how)

    def scored(module: InferenceModule, folder: str, num_images: int) -> tuple[Any, Any, float]:
        """Report, drawings, and milliseconds of an image."""
        timer = Stages(run.device)
        more = {key: cfg[key] for key in ("batch_size", "num_workers")}
        more |= {"num_images": num_images, "timer": timer}
        with Watchdog(run):
            if cfg.data.get("benchmark") is None or task.hand is None:  # submissions need meshes
                report, sheet = score(module, dataset, **more)
            else:
                placement = cfg.data.placement
                hands = predict_camera_hands(module, dataset, placement=placement, **more)
                gt = find_ground_truth(cfg.data.root, cfg.data.cache_dir)
                report, sheet = submit(run, cfg.data.benchmark, hands, gt, folder), hands.sheet
        return report, sheet, timer.seconds_per_item["all"] * 1e3

    report, sheet, ms = scored(module(compile=run.compile), ".", cfg.num_images)
    if views is not None:
        report[TIME] = ms
        block, _, ms = scored(module(views=views), TTA, 0)
        report[TTA] = block | {"num_views": len(views.views), TIME: ms}
    write_report(run, f"{cfg.predictor} of {cfg.checkpoint}", report, sheet)
    return report
