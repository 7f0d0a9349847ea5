"""Scoring a fine-tuned checkpoint, or an existing submission file."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from handmim.data.truth import find_truth, read_truth
from handmim.pipelines.start import start_run
from handmim.reports.scores import write_report
from handmim.tasks.camera_hands import predict_camera_hands
from handmim.tasks.evaluate import PREDICTORS, check_hands, load_trained, score
from handmim.tasks.official import score_file, submit
from handmim.utils.config import set_everywhere


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score one or the other.

    Args:
        cfg: composed from configs/eval.yaml.
    Returns: flat figures, with the official ones under "official" where there are any.
    Raises: ValueError unless exactly one of checkpoint and predictions is given.
    """
    if (cfg.checkpoint is None) == (cfg.predictions is None):
        raise ValueError("give either checkpoint=FILE.pt or predictions=pred.json")
    return evaluate_model(cfg) if cfg.predictions is None else evaluate_file(cfg)


def evaluate_file(cfg: DictConfig) -> dict[str, Any]:
    """Score a submission file."""
    if cfg.get("data") is None or cfg.data.get("benchmark") is None:
        raise ValueError("predictions= needs the benchmark: data=freihand data.root=DIR, ...")
    run = start_run(cfg)
    truth = read_truth(cfg.data.root, cfg.data.cache_dir)
    report = score_file(cfg.predictions, cfg.data.benchmark, truth)
    write_report(run, cfg.predictions, report)
    return report


def evaluate_model(cfg: DictConfig) -> dict[str, Any]:
    """Rebuild the model from its checkpoint and score it."""
    if cfg.predictor not in PREDICTORS:
        raise ValueError(f"predictor must be one of {sorted(PREDICTORS)}, got {cfg.predictor!r}")
    saved = load_trained(cfg.checkpoint)
    trained = OmegaConf.create(saved["config"])
    OmegaConf.set_struct(cfg, False)  # its own words are checked by now
    cfg.hand = {**trained.hand, **{k: v for k, v in cfg.hand.items() if v is not None}}
    if cfg.get("data") is None:
        cfg.data = trained.data
        set_everywhere(cfg.data, "hand_path", cfg.hand.path)
    if "hand" in trained.task.head:  # bare joints have none
        trained.task.head.hand = cfg.hand
    run = start_run(cfg)
    task = instantiate(trained.task)
    with run.fabric.rank_zero_first():
        dataset = instantiate(cfg.data.get("test") or cfg.data.val)
    check_hands(task.hand_sha256, saved["meta"].get("hand_sha256"), cfg.checkpoint)
    check_hands(task.hand_sha256, getattr(dataset, "hand_sha256", None), "the data")
    task.load_state_dict(saved["task"])
    task.to(run.device)
    predict, augment = PREDICTORS[cfg.predictor](task), instantiate(trained.augment)
    how = {"num_pictures": cfg.num_pictures, "faces": task.faces, "batch_size": cfg.batch_size}
    how |= {"autocast": run.fabric.autocast, "num_workers": cfg.num_workers}
    if cfg.data.get("benchmark") is None or task.faces is None:  # submissions need meshes
        report, sheet = score(predict, dataset, augment, run.device, **how)
    else:
        how["placement"] = cfg.data.placement
        truth = find_truth(cfg.data.root, cfg.data.cache_dir)
        hands = predict_camera_hands(predict, dataset, augment, run.device, **how)
        report, sheet = submit(run, cfg.data.benchmark, hands, truth), hands.sheet
    write_report(run, f"{cfg.predictor} of {cfg.checkpoint}", report, sheet)
    return report
