"""Score a fine-tuned checkpoint, or an existing submission file.

python tools/eval.py checkpoint=runs/finetune/last.pt                       # its own data
python tools/eval.py checkpoint=runs/finetune/last.pt predictor=mean_hand   # the baseline to beat
python tools/eval.py checkpoint=runs/finetune/last.pt data=freihand data.root=DIR
python tools/eval.py predictions=pred.json data=ho3d_v3 data.root=DIR       # without a model

With FreiHAND or HO-3D it writes pred.json and the zip that the servers take, and every official
figure where the truth is beside the dataset.
"""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from handmim.data.truth import find_truth, read_truth
from handmim.reports.scores import write_report
from handmim.tasks.camera_hands import predict_camera_hands
from handmim.tasks.evaluate import PREDICTORS, check_hands, load_trained, score
from handmim.tasks.official import score_file, submit
from handmim.utils.config import set_everywhere
from handmim.utils.run import Run


def start(cfg: DictConfig) -> Run:
    """The run, recorded with what it was asked for."""
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    run_dir = Path(cfg.paths.run_root) / cfg.name
    return Run.start(cfg.name, run_dir, cfg.seed, config, **cfg.machine, overwrite=cfg.overwrite)


def from_file(cfg: DictConfig) -> None:
    """Score a submission file."""
    if cfg.get("data") is None or cfg.data.get("benchmark") is None:
        raise ValueError("predictions= needs the benchmark: data=freihand data.root=DIR, ...")
    run = start(cfg)
    truth = read_truth(cfg.data.root, cfg.data.cache_dir)
    report = score_file(cfg.predictions, cfg.data.benchmark, truth)
    write_report(run, cfg.predictions, report)


def from_model(cfg: DictConfig) -> None:
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
    trained.task.head.hand = cfg.hand
    run = start(cfg)
    task = instantiate(trained.task)
    with run.fabric.rank_zero_first():
        dataset = instantiate(cfg.data.get("test") or cfg.data.val)
    hand = task.head.hand
    check_hands(hand.sha256, saved["meta"]["hand_sha256"], cfg.checkpoint)
    check_hands(hand.sha256, getattr(dataset, "hand_sha256", None), "the data")
    task.load_state_dict(saved["task"])
    task.to(run.device)
    predict, augment = PREDICTORS[cfg.predictor](task), instantiate(trained.augment)
    how = {"num_pictures": cfg.num_pictures, "faces": hand.faces, "batch_size": cfg.batch_size}
    how |= {"autocast": run.fabric.autocast, "num_workers": cfg.num_workers}
    if cfg.data.get("benchmark") is None:
        report, sheet = score(predict, dataset, augment, run.device, **how)
    else:
        how["placement"] = cfg.data.placement
        truth = find_truth(cfg.data.root, cfg.data.cache_dir)
        hands = predict_camera_hands(predict, dataset, augment, run.device, **how)
        report, sheet = submit(run, cfg.data.benchmark, hands, truth), hands.sheet
    write_report(run, f"{cfg.predictor} of {cfg.checkpoint}", report, sheet)


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    """One or the other."""
    if (cfg.checkpoint is None) == (cfg.predictions is None):
        raise ValueError("give either checkpoint=FILE.pt or predictions=pred.json")
    (from_model if cfg.predictions is None else from_file)(cfg)


if __name__ == "__main__":
    main()
