"""Parts of a config that cost nothing, built for a moment: they refuse their settings before a run
is begun, a set is rendered or a cell of a table is started."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import nn

from handmim.engine.best import BestRule
from handmim.engine.trainer import Trainer
from handmim.evaluation.scoring import METRICS
from handmim.pipelines.labels import check_choice
from handmim.utils.config import build, drop_unbuilt

RENDERED = "handmim.data.synthetic.SyntheticHands"
SCENE = "handmim.render.scene.SceneSettings"


def try_parts(cfg: DictConfig) -> None:
    """Build trainer, views, optimizer, hooks and scenes, and throw them away.

    Args:
        cfg: composed from configs/pretrain.yaml or configs/finetune.yaml, paths looked at.
    Raises: ValueError and what else a part refuses its settings with.
    """
    Trainer(**cfg.trainer)
    if "eval_every" in cfg:
        BestRule(cfg.trainer.keep_best).check([f"val/{name}" for name in METRICS])
    for key in ("views", "augment"):
        if key in cfg:
            build(cfg[key])
    build(cfg.optim).build(nn.Linear(1, 1), {})
    probe = cfg.probe.hook if "probe" in cfg else None
    if probe is not None:
        build(probe, train_set=None, test_set=None)
    if "collapse" in cfg and cfg.collapse.get("_target_") is not None:
        build(cfg.collapse)(range(2), None)
    for node in (*_rendered(cfg.data), *_rendered(probe)):
        scene = node.scene.copy()  # it keeps its place, which messages name
        with open_dict(scene):
            scene._target_, scene._convert_ = SCENE, "all"
        build(scene)
    if "num_labels" in cfg:
        _try_labels(cfg)


def try_task(cfg: DictConfig) -> None:
    """Build the networks and losses of a config, and throw them away.

    Raises: ValueError and what else a part refuses its settings with.
    """
    task = cfg.task.copy()
    drop_unbuilt(task)
    build(task)


def _rendered(node: Any) -> Iterator[DictConfig]:
    """Rendered sets below a node."""
    if not isinstance(node, DictConfig):
        return
    if node.get("_target_") == RENDERED:
        yield node
    for key in node:
        if isinstance(child := node._get_node(key), DictConfig):
            yield from _rendered(child)


def _try_labels(cfg: DictConfig) -> None:
    check_choice(num=cfg.num_labels, fraction=cfg.label_fraction, file=cfg.label_ids)
    train = cfg.data.train
    is_rendered = train.get("_target_") == RENDERED
    if is_rendered and cfg.num_labels is not None and cfg.num_labels > train.num:
        raise ValueError(
            f"num_labels={cfg.num_labels}: more than the {train.num} that are rendered "
            "(num_labels, data.num_train)"
        )
