"""Pretraining and fine-tuning from a composed config to what the run leaves behind: the config is
checked, its parts are tried, the run is opened, labels are chosen, the task is trained."""

from collections import defaultdict, deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, open_dict
from torch import nn
from torch.utils.data import Dataset, Subset

from handmim.data.augment import HandAugment
from handmim.data.datasets import (
    fingerprint_of,
    hand_sha256_of,
    label_ids,
    label_subset,
    lines_sha256,
    read_ids,
    share_of_labels,
    subset_of_ids,
    write_ids,
)
from handmim.data.loader import batches, collate_crops, collate_hands
from handmim.data.unlabeled import CollatePairs, Pairs, PreparePairs
from handmim.engine.checkpoint import BEST, LAST, checkpoints_of
from handmim.engine.saver import BestTracker
from handmim.engine.trainer import FitResult, Trainer
from handmim.engine.workers import StopSignals, Watchdog
from handmim.evaluation.predictor import check_same_hand
from handmim.evaluation.scoring import METRICS, EvalHook, MomentsHook
from handmim.models.pyramid import BACKBONE, export_neck, load_neck
from handmim.models.token_norm import DOMAINS, LABELLED, UNLABELED
from handmim.models.vit import ViT
from handmim.models.weights.files import read_weights
from handmim.models.weights.load import load_initial
from handmim.pipelines.preflight import WEIGHTS, preflight
from handmim.types import HandSample, Task
from handmim.utils.arguments import one_of
from handmim.utils.config import build, drop_unbuilt, resolved, values
from handmim.utils.json_files import read_rows
from handmim.utils.processes import DONE
from handmim.utils.run import Run

LABELS = ("num_labels", "label_fraction", "label_ids")  # settings that choose some
LABELS_FILE = "labels.txt"
RENDERED = "handmim.data.synthetic.SyntheticHands"
SCENE = "handmim.render.scene.SceneSettings"


class Trained(NamedTuple):
    """What pretraining or fine-tuning leaves behind; the last three are of fine-tuning."""

    run_dir: Path
    backbone: Path | None  # of the side that is kept (task.export); None where a run was stopped
    result: FitResult
    metrics: dict[str, float]  # of the last validation
    num_labels: int
    best_metrics: dict[str, float]  # of the validation that best.pt was kept for, where it was


def pretrain(cfg: DictConfig) -> Trained:
    """Assemble, train, export; train=false exports the initial weights. Raises: ValueError."""
    with StopSignals():
        run, task = setup_training(cfg)
        if cfg.init is not None:
            task.load_initial(cfg.init)
        if cfg.train:
            result = _train(cfg, run, task)
        else:
            if cfg.init is None:
                run.log.warning("train=false and init=null: random weights are exported")
            if checkpoints_of(run.dir, cfg.resume):
                raise FileExistsError(
                    f"{run.dir} holds a trained run, whose weights train=false would replace with "
                    "initial ones: take another name (name=...)"
                )
            run.write_start()
            result = FitResult(0, False, {})
        return Trained(run.dir, export(run, task, cfg.seed, result), result, {}, 0, {})


def _train(cfg: DictConfig, run: Run, task: Task) -> FitResult:
    make_views = build(cfg.views)
    with run.fabric.rank_zero_first():  # one process renders what is not in the cache yet
        dataset = build(cfg.data.train)
        if len(dataset) < 2:
            raise ValueError(f"pretraining compares images: got {len(dataset)}, needs 2 (data)")
        hooks = [] if cfg.probe.hook is None else [build(cfg.probe.hook)]
    if cfg.collapse is not None:
        hooks.append(build(cfg.collapse)(dataset, make_views))
    # The hand is that of rendered sets.
    meta = {"hand_sha256": hand_sha256_of(dataset), "data_sha256": fingerprint_of(dataset)}
    parts = (run, task, dataset, collate_crops, make_views, build(cfg.optim))
    return Trainer(**cfg.trainer).fit(*parts, hooks=hooks, resume=cfg.resume, meta=meta)


def finetune(cfg: DictConfig) -> Trained:
    """Assemble, start at the mean of the labels, train. Raises: ValueError."""
    if "val" not in cfg.data:
        raise ValueError(
            "fine-tuning requires labelled images, these have no labels: choose data=synthetic, "
            "freihand, ho3d_v3 or keypoints"
        )
    if (settings := cfg.get("unlabeled")) is not None:
        if "data" not in settings:
            which = " and ".join(f"{name}=" for name in settings.terms)
            ways = "unlabeled=folder unlabeled.data.root=DIR"
            raise ValueError(f"{which} needs unlabeled crops: {ways}")
        has_norm = settings.moments and cfg.task.get("token_norm") is not None
        if not (reads_crops(settings) or has_norm):
            ways = "consensus=views, pretext=run, task.token_norm=patches, unlabeled.spectrum_prob"
            raise ValueError(f"nothing would read the unlabeled crops: {ways}, or unlabeled=null")
    with StopSignals():
        return _finetune(cfg)


def _finetune(cfg: DictConfig) -> Trained:
    run, task = setup_training(cfg)
    load_initial(task.backbone, cfg.init_from)
    run.log.info("backbone: %s", cfg.init_from or "random weights (init_from=null)")
    neck = load_neck(task.head, cfg.init_from, cfg.init_neck)
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
    meta = task.hand_metadata() | neck | chosen.facts | {"data_sha256": fingerprint_of(train)}
    if cfg.trainer.keep_best is not None:  # it is chosen by the validation
        meta["val_sha256"] = fingerprint_of(val)
    if not sources:  # else its state holds them already
        with Watchdog(run):
            spared = {"num_workers": num_workers, "max_unreadable": cfg.trainer.max_unreadable}
            task.start_from_labels(train, augment, run.device, **spared)
            deque(batches(val, 64, num_workers), maxlen=0)  # else the first validation refuses it
    validation = EvalHook(val, augment, cfg.eval_every, num_workers=num_workers)
    hooks: Any = [validation]
    parts: Any = (train, collate_hands, augment)
    domains = {LABELLED: train}
    if (settings := cfg.get("unlabeled")) is not None:
        with run.fabric.rank_zero_first():
            crops = build(settings.data)
        if reads_crops(settings):
            parts = Pairs(train, crops), *join_unlabeled(settings, task, augment)
        meta["unlabeled_sha256"] = fingerprint_of(crops)
        if settings.moments:
            domains[UNLABELED] = crops
        if settings.val == LABELLED:
            validation.domain = LABELLED
    if task.token_norm is not None:
        hooks.insert(0, MomentsHook(domains, augment, cfg.eval_every))
    for name, node in (cfg.data.get("more") or {}).items():
        with run.fabric.rank_zero_first():
            further = build(node)
        hooks.append(replace(validation, dataset=further, name=name, domain=LABELLED))
    parts = (run, task, *parts, build(cfg.optim))
    result = Trainer(**cfg.trainer).fit(*parts, hooks=hooks, resume=cfg.resume, meta=meta)
    path = export(run, task, cfg.seed, result)
    if result.exit_code == DONE:
        scored = run.dir / (LAST if result.best is None else BEST)
        run.log.info("score it: python tools/eval.py checkpoint=%s", scored)
    logged = validations(run.dir)
    best = {} if result.best is None else logged.get(result.best.step, {})
    last = list(logged.values())[-1] if logged else {}
    return Trained(run.dir, path, result, last, chosen.num, best)


def reads_crops(settings: DictConfig) -> bool:
    """Whether training steps read the unlabeled crops; moments of tokens are measured apart."""
    return bool(settings.terms or settings.spectrum_prob)


def join_unlabeled(
    settings: DictConfig, task: Any, augment: HandAugment
) -> tuple[CollatePairs, PreparePairs]:
    """Give a task the terms on unlabeled crops; what collates and prepares pairs of samples."""
    one_of("unlabeled.val", settings.val, DOMAINS)
    terms = {name: build(node.term) for name, node in settings.terms.items()}
    views = {name: build(node.views) for name, node in settings.terms.items()}
    for name, term in terms.items():
        term.check_views(views[name])
    task.add_unlabeled(terms)
    prepare = PreparePairs(augment=augment, views=views, spectrum_prob=settings.spectrum_prob)
    return CollatePairs(settings.share), prepare


def validations(run_dir: Path) -> dict[int, dict[str, float]]:
    """Metrics of the validations that a run logged, by step: without `val/`, and without the
    `val_` of further sets."""
    logged: dict[int, dict[str, float]] = defaultdict(dict)
    for row in read_rows(run_dir / "scalars.jsonl"):
        metrics = {k[4:]: v for k, v in row.items() if k.startswith(("val/", "val_"))}
        if metrics:
            logged[int(row["step"])] |= metrics
    return logged


def setup_training(cfg: DictConfig) -> tuple[Run, Any]:
    """A run and its task, which is built before there is a folder; errors as `setup_run`."""
    drop_unbuilt(cfg.task)
    tasks: list[nn.Module] = []

    def make() -> None:
        tasks.append(build(cfg.task))
        if (settings := cfg.get("unlabeled")) is not None:  # tried on a copy
            join_unlabeled(settings, deepcopy(tasks[0]), build(cfg.augment))

    run = setup_run(cfg, resume=cfg.resume, before_folder=make)
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
    """Write the backbone of a finished run, with its seed, and its neck beside it; None of one that
    was stopped, whose last.pt may be resumed or taken as initial weights. The main process does."""
    path, last = run.dir / BACKBONE, run.dir / LAST
    if result.exit_code != DONE:
        run.log.warning("no %s: the run is not finished; its weights are in %s", BACKBONE, last)
        return None
    if run.is_main:
        facts = {"step": str(result.step), "seed": str(seed)}
        task.export_backbone.export(path, facts)
        run.log.info("exported backbone: %s (loads with timm.create_model)", path)
        if (neck := getattr(task, "export_neck", None)) is not None and result.step:
            run.log.info("exported neck: %s", export_neck(neck, path, facts))
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
