"""Fine-tune a MANO regression on labelled hand crops.

python tools/finetune.py init_from=runs/pretrain/backbone.safetensors data=synthetic
python tools/finetune.py experiment=quickstart_finetune init_from=null     # from scratch, on a CPU
"""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from handmim.data.loader import collate_hands, label_subset
from handmim.engine.checkpoint import find_checkpoint
from handmim.engine.loop import Trainer
from handmim.tasks.evaluate import EvalHook, check_hands
from handmim.tasks.finetune import start_from_labels
from handmim.utils.run import Run


@hydra.main(version_base="1.3", config_path="../configs", config_name="finetune")
def main(cfg: DictConfig) -> None:
    """Assemble, start at the mean hand of the labels, train."""
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    run_dir = Path(cfg.paths.run_root) / cfg.name
    flags = {"resume": cfg.resume, "overwrite": cfg.overwrite}
    run = Run.start(cfg.name, run_dir, cfg.seed, config, **cfg.machine, **flags)

    task = instantiate(cfg.task)
    if cfg.init_from is not None:
        task.backbone.load_exported(cfg.init_from)
    with run.fabric.rank_zero_first():  # one process renders what is not in the cache yet
        train, val = instantiate(cfg.data.train), instantiate(cfg.data.val)
    for name, part in (("data.train", train), ("data.val", val)):
        check_hands(task.head.hand.sha256, getattr(part, "hand_sha256", None), name)
    train = label_subset(train, cfg.num_labels, cfg.seed)
    augment = instantiate(cfg.augment)
    recipe = instantiate(cfg.optim)
    workers = cfg.trainer.num_workers
    if find_checkpoint(run.dir, cfg.resume) is None:  # else its state holds them already
        start_from_labels(task, train, augment, run.device, num_workers=workers)
    hand = {"hand": task.head.hand.name, "hand_sha256": task.head.hand.sha256}

    trainer = Trainer(**cfg.trainer)
    hooks = [EvalHook(val, augment, cfg.eval_every, num_workers=workers)]
    result = trainer.fit(
        run, task, train, collate_hands, augment, recipe, hooks=hooks, resume=cfg.resume, meta=hand
    )
    if run.is_main and not result.interrupted:
        run.log.info("score it: python tools/eval.py checkpoint=%s", run.dir / "last.pt")


if __name__ == "__main__":
    main()
