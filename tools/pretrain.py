"""Pretrain a backbone on unlabeled hand crops.

python tools/pretrain.py data=folder data.root=DIR                  # your crops, ViT-B/16
python tools/pretrain.py experiment=cpu_pretrain data.root=DIR      # the same on a CPU, minutes
python tools/pretrain.py experiment=quickstart_pretrain             # rendered hands, a CPU, minutes
python tools/pretrain.py 'loss=[patch_distill,keypoint_align]' ...  # an ablation is one override
"""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from handmim.data.loader import collate_crops
from handmim.engine.loop import Trainer
from handmim.utils.config import drop_unbuilt
from handmim.utils.run import Run


@hydra.main(version_base="1.3", config_path="../configs", config_name="pretrain")
def main(cfg: DictConfig) -> None:
    """Assemble, train, export."""
    drop_unbuilt(cfg.task.losses)
    drop_unbuilt(cfg.task.heads)
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    run_dir = Path(cfg.paths.run_root) / cfg.name
    flags = {"resume": cfg.resume, "overwrite": cfg.overwrite}
    run = Run.start(cfg.name, run_dir, cfg.seed, config, **cfg.machine, **flags)

    with run.fabric.rank_zero_first():  # one process renders what is not in the cache yet
        dataset = instantiate(cfg.data.train)
    make_views = instantiate(cfg.views)
    task = instantiate(cfg.task)
    recipe = instantiate(cfg.optim)
    with run.fabric.rank_zero_first():
        hooks = [instantiate(cfg.probe.hook)] if cfg.probe.hook is not None else []

    trainer = Trainer(**cfg.trainer)
    how = {"hooks": hooks, "resume": cfg.resume}
    how["meta"] = {"hand_sha256": getattr(dataset, "hand_sha256", None)}  # of rendered hands
    result = trainer.fit(run, task, dataset, collate_crops, make_views, recipe, **how)
    if run.is_main:
        path = run.dir / "backbone.safetensors"
        task.export_backbone.export(path, {"step": str(result.step), "seed": str(cfg.seed)})
        run.log.info("backbone of the EMA teacher: %s (loads with timm.create_model)", path)


if __name__ == "__main__":
    main()
