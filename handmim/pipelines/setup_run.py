"""Start of a pipeline: its config is checked, its parts are tried, its run is opened, its labels
are chosen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, open_dict
from torch import nn
from torch.utils.data import Dataset, Subset

from handmim.data.datasets import (
    label_ids,
    label_subset,
    lines_sha256,
    read_ids,
    share_of_labels,
    subset_of_ids,
    write_ids,
)
from handmim.engine.checkpoint import LAST
from handmim.engine.saver import BestTracker
from handmim.engine.trainer import FitResult, Trainer
from handmim.evaluation.scoring import METRICS
from handmim.models.vit import ViT
from handmim.models.weights.files import read_weights
from handmim.pipelines.preflight import WEIGHTS, preflight
from handmim.types import HandSample
from handmim.utils.config import build, drop_unbuilt, resolved, values
from handmim.utils.processes import DONE
from handmim.utils.run import Run

BACKBONE = "backbone.safetensors"
LABELS = ("num_labels", "label_fraction", "label_ids")  # settings that choose some
LABELS_FILE = "labels.txt"
RENDERED = "handmim.data.synthetic.SyntheticHands"
SCENE = "handmim.render.scene.SceneSettings"


def setup_training(cfg: DictConfig) -> tuple[Run, Any]:
    """A run and its task, which is built before there is a folder; errors as `setup_run`."""
    drop_unbuilt(cfg.task)
    tasks: list[nn.Module] = []
    run = setup_run(cfg, resume=cfg.resume, before_folder=lambda: tasks.append(build(cfg.task)))
    Trainer(**cfg.trainer).check_batch(run.world_size)
    if run.compile:
        compile_backbones(tasks[0])
    return run, tasks[0]


def setup_run(
    cfg: DictConfig, *, resume: str = "never", before_folder: Callable[[], object] | None = None
) -> Run:
    """The recorded run of a composed config, arguments as `Run.start`. Raises: ValueError naming
    missing values and files, and damaged initial weights; what parts of the config raise."""
    config = resolved(cfg)
    preflight(cfg)
    for source in [cfg[key] for key in WEIGHTS if cfg.get(key) is not None]:
        read_weights(source)  # refused before there is a folder
    if "trainer" in cfg:
        try_parts(cfg)
    folder = Path(cfg.paths.run_root) / cfg.name
    flags = {"resume": resume, "overwrite": cfg.overwrite, "before_folder": before_folder}
    return Run.start(cfg.name, folder, cfg.seed, config, **cfg.machine, **flags)


def export(run: Run, task: Any, seed: int, result: FitResult) -> Path | None:
    """Write the backbone of a finished run, with its seed; None of one that was stopped, whose
    last.pt may be resumed or taken as initial weights. The main process does."""
    path, last = run.dir / BACKBONE, run.dir / LAST
    if result.exit_code != DONE:
        run.log.warning("no %s: the run is not finished; its weights are in %s", BACKBONE, last)
        return None
    if run.is_main:
        task.export_backbone.export(path, {"step": str(result.step), "seed": str(seed)})
        run.log.info("exported backbone: %s (loads with timm.create_model)", path)
    return path


def compile_backbones(task: nn.Module) -> None:
    """Let torch.compile fuse the blocks of every backbone of a task."""
    for module in task.modules():
        if isinstance(module, ViT):
            module.compile_blocks()


def try_parts(cfg: DictConfig) -> None:
    """Build parts of a training config that cost nothing, and throw them away: they refuse their
    settings before a run is begun or a set is rendered."""
    Trainer(**cfg.trainer)
    if "eval_every" in cfg:
        BestTracker(cfg.trainer.keep_best).choose([f"val/{name}" for name in METRICS])
    for key in ("views", "augment"):
        if key in cfg:
            build(cfg[key])
    build(cfg.optim).build(nn.Linear(1, 1), {})
    if (probe := cfg.probe.hook if "probe" in cfg else None) is not None:
        build(probe, train_set=None, test_set=None)
    if cfg.get("collapse") is not None:
        build(cfg.collapse)(range(2), None)
    for part in (*values(cfg.data), *values(probe)):
        if part.value == RENDERED:
            scene = part.node.scene.copy()  # it keeps its key, which messages name
            with open_dict(scene):
                scene._target_, scene._convert_ = SCENE, "all"
            build(scene)
    if "num_labels" in cfg:
        check_choice(*(cfg[key] for key in LABELS))
        train = cfg.data.train
        if train.get("_target_") == RENDERED and (cfg.num_labels or 0) > train.num:
            raise ValueError(
                f"num_labels={cfg.num_labels}: more than the {train.num} that are rendered "
                "(num_labels, data.num_train)"
            )


class ChosenLabels(NamedTuple):
    """The labels of a set that a run may use."""

    samples: Dataset[HandSample]  # all of these labels
    num: int
    choice: str  # how they were chosen

    @property
    def facts(self) -> dict[str, str]:
        """For a checkpoint: the digest that labels.txt gives of its ids; nothing of all labels."""
        if not isinstance(self.samples, Subset):
            return {}
        return {"labels_sha256": lines_sha256(label_ids(self.samples))}

    def write(self, folder: Path) -> None:
        """Name the labels in <folder>/labels.txt; all of a set leave no such file."""
        if isinstance(self.samples, Subset):
            write_ids(folder / LABELS_FILE, self.samples, self.choice)
        else:
            (folder / LABELS_FILE).unlink(missing_ok=True)


def check_choice(num: int | None, fraction: float | None, file: str | None) -> None:
    """Refuse what `choose_labels` refuses of any set, before there is one."""
    options = zip(LABELS, (num, fraction, file), strict=True)
    given = [f"{key}={value}" for key, value in options if value is not None]
    if len(given) > 1:
        one = f"give one of {', '.join(LABELS)}, not both"
        raise ValueError(f"{one}: got {', '.join(given)} (KEY=null takes one back)")
    if fraction is not None:
        share_of_labels(1, fraction)
    if file is not None:
        read_ids(file)


def choose_labels(
    dataset: Dataset[HandSample],
    num: int | None = None,
    fraction: float | None = None,
    file: str | None = None,
    *,
    seed: int = 0,
) -> ChosenLabels:
    """So many random labels of a set, or this share of them, or those whose ids a file lists, or
    all. Raises: ValueError for more than one choice, a share outside (0, 1], more labels than
    there are, or unknown ids; FileNotFoundError."""
    check_choice(num, fraction, file)
    if file is not None:
        ids = read_ids(file)
        return ChosenLabels(subset_of_ids(dataset, ids), len(ids), f"as in {Path(file).name}")
    total = len(label_ids(dataset))
    num = num if fraction is None else share_of_labels(total, fraction)
    samples = label_subset(dataset, num, seed)
    return ChosenLabels(samples, total if num is None else num, f"seed {seed}")
