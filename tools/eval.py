"""Score a fine-tuned checkpoint in PA-MPJPE, PA-MPVPE, MPJPE, F-scores and AUC.

python tools/eval.py checkpoint=runs/finetune/last.pt                       # its own validation set
python tools/eval.py checkpoint=runs/finetune/last.pt predictor=mean_hand   # the baseline to beat
python tools/eval.py checkpoint=runs/finetune/last.pt data=synthetic scene@data.scene=full
"""

from pathlib import Path

import cv2
import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from handmim.engine.checkpoint import check_targets, load_checkpoint
from handmim.reports.table import print_metrics
from handmim.tasks.evaluate import check_hands, mean_hand_predictor, model_predictor, score
from handmim.utils.run import Run


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Rebuild the model from its checkpoint, score, write metrics.json."""
    predictors = {"model": model_predictor, "mean_hand": mean_hand_predictor}
    if cfg.predictor not in predictors:
        raise ValueError(f"predictor must be one of {sorted(predictors)}, got {cfg.predictor!r}")
    saved = load_checkpoint(cfg.checkpoint, map_location="cpu")
    check_targets(saved["config"])
    trained = OmegaConf.create(saved["config"])
    if "head" not in trained.task:
        raise ValueError(f"{cfg.checkpoint} is a pretraining checkpoint: fine-tune it first")
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    run_dir = Path(cfg.paths.run_root) / cfg.name
    run = Run.start(cfg.name, run_dir, cfg.seed, config, **cfg.machine, overwrite=cfg.overwrite)

    task = instantiate(trained.task)
    hand = task.head.hand
    data = cfg.get("data") or trained.data  # data=... replaces the checkpoint's own
    with run.fabric.rank_zero_first():
        dataset = instantiate(data.val)
    check_hands(saved["meta"]["hand_sha256"], hand.sha256, getattr(dataset, "hand_sha256", None))
    task.load_state_dict(saved["task"])
    task.to(run.device)

    metrics, sheet = score(
        predictors[cfg.predictor](task),
        dataset,
        instantiate(trained.augment),
        run.device,
        cfg.batch_size,
        cfg.num_pictures,
        hand.faces,
        run.fabric.autocast,
    )
    if not run.is_main:
        return
    run.write_json("metrics.json", metrics)
    run.discard_replaced()
    if sheet is not None:
        cv2.imwrite(str(run.dir / "predictions.png"), sheet[:, :, ::-1])
    print_metrics({f"{cfg.predictor} of {cfg.checkpoint}": metrics})
    run.log.info("figures: %s", run.dir / "metrics.json")


if __name__ == "__main__":
    main()
