"""The three stages of a cell: pretraining, frozen probes, fine-tunes with shares of the labels."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from handmim.ablation.files import content_sha
from handmim.ablation.overrides import PROBED, decisive
from handmim.ablation.plan import Cell, Compose
from handmim.ablation.store import StageStore
from handmim.ablation.table import Row, fraction_name
from handmim.engine.checkpoint import LAST, load_checkpoint
from handmim.engine.signals import Stopped, StopSignals
from handmim.engine.trainer import FitResult
from handmim.models.weights.load import load_initial
from handmim.pipelines.finetune import finetune
from handmim.pipelines.pretrain import pretrain
from handmim.pipelines.setup_run import BACKBONE, setup_run
from handmim.tasks.pretrain import HandMimTask
from handmim.types import StepInfo
from handmim.utils.config import build, drop_unbuilt, flatten
from handmim.utils.rows import read_rows
from handmim.utils.seed import seed_everything

POINTS = "points"  # a feature of probes: what the keypoint head finds
RENDERED = "SyntheticHands"  # a set that takes long to make
SHOWN = (
    "loss",
    "features",
    "keypoints",
    "targets",
    "speed",
    "diagnostics",
    "collapse",
    "health",
    "alarms",
)


class Start(NamedTuple):
    """What probes and fine-tunes of a cell begin with.

    Attributes:
        name: in their definitions.
        weights: backbone; None for random weights.
        is_own: whether a pretraining stage of the store made it and left its heads beside it; else
            what lies beside it is not looked at.
    """

    name: str
    weights: Path | None = None
    is_own: bool = True

    @property
    def files(self) -> list[Path]:
        """What the stages that begin with it depend on."""
        return [] if self.weights is None else [self.weights]


class Stages:
    """Stages through the pipelines, kept in a store.

    Args:
        compose: (config name, overrides) -> config.
        store: of finished stages.
    """

    def __init__(self, compose: Compose, store: StageStore) -> None:
        self.compose, self.store = compose, store

    def run(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """Records by stage name: pretrain, probe, finetune_<per cent of the labels>.

        Raises: Stopped when a signal ended training early; what was done is kept.
        """
        row, seed = cell.row, cell.seed
        records: dict[str, dict[str, Any]] = {}
        start = Start(f"random {seed}")
        self._read_labels(row, seed)
        if row.is_pretrained:
            records["pretrain"] = self._pretrain(list(row.pretrain), seed)
            folder = self.store.root / records["pretrain"]["folder"]
            start = Start(folder.name, folder / BACKBONE)
        elif row.init_from is not None:
            weights = Path(row.init_from).absolute()
            if not weights.is_file():
                raise FileNotFoundError(f"no weights at {weights} (row {row.name}: init_from)")
            start = Start(content_sha(weights), weights, is_own=False)
        records["probe"] = self._probe(list(row.pretrain), seed, start)
        for share in (float(f) for f in cell.overrides["fractions"]):
            words = [*row.finetune, f"label_fraction={share}"]
            records[fraction_name(share)] = self._finetune(words, seed, start)
        return records

    def _read_labels(self, row: Row, seed: int) -> None:
        """Read the labelled sets that are not rendered: what is wrong with them shows before
        pretraining."""
        probe = self.compose("pretrain", [*row.pretrain, f"seed={seed}"]).probe.hook
        data = self.compose("finetune", [*row.finetune, f"seed={seed}"]).data
        sets = [] if probe is None else [probe.train_set, probe.test_set]
        for node in (*sets, data.train, data.val):
            leaves = flatten(OmegaConf.to_container(node, resolve=True)).values()
            if not any(RENDERED in str(value) for value in leaves):
                build(node)

    def _config(self, name: str, words: list[str], seed: int, folder: Path) -> DictConfig:
        """Composed again with a place to run in; a stage that was interrupted goes on."""
        place = [f"paths.run_root='{folder.parent}'", f"name='{folder.name}'", "resume=auto"]
        return self.compose(name, [*words, f"seed={seed}", *place])

    def _pretrain(self, words: list[str], seed: int) -> dict[str, Any]:
        # No label is looked at while pretraining.
        words = [w for w in words if not w.startswith(("probe=", "probe."))] + ["probe=none"]
        definition = decisive(self.compose("pretrain", [*words, f"seed={seed}"]))

        def work(folder: Path) -> dict[str, float]:
            made = pretrain(self._config("pretrain", words, seed, folder))
            _check_whole(made.result, folder)
            last = read_rows(folder / "scalars.jsonl")[-1:]
            return {k: v for row in last for k, v in row.items() if _is_figure(k)}

        return self.store.get("pretrain", definition, work)

    def _probe(self, words: list[str], seed: int, start: Start) -> dict[str, Any]:
        cfg = self.compose("pretrain", [*words, f"seed={seed}"])
        if cfg.probe.hook is None:
            raise ValueError("cells are probed on labelled sets (setting.probe: [probe=...])")
        drawn = {}
        if not start.is_own:  # heads are drawn by the seed; no keypoint head is trained
            kept = ",".join(f for f in cfg.probe.features if f != POINTS)
            words = [*words, f"probe.features=[{kept}]"]
            cfg = self.compose("pretrain", [*words, f"seed={seed}"])
            drawn = {"seed": seed}
        plain = decisive(cfg)
        definition = {k: plain.get(k) for k in PROBED} | {"start": start.name} | drawn

        def work(folder: Path) -> dict[str, float]:
            run = setup_run(self._config("pretrain", words, seed, folder), resume="auto")
            task = restored(cfg, seed, start).to(run.device)
            with torch.no_grad():
                figures = build(cfg.probe.hook)(task, StepInfo(0, 1), run)
            return {key.removeprefix("probe/"): value for key, value in figures.items()}

        return self.store.get("probe", definition, work, start.files)

    def _finetune(self, words: list[str], seed: int, start: Start) -> dict[str, Any]:
        plain = decisive(self.compose("finetune", [*words, f"seed={seed}"]))
        definition = plain | {"start": start.name}
        init = "init_from=null" if start.weights is None else f"init_from='{start.weights}'"
        # Figures are those of the last validation; best.pt is kept where it is asked for.
        words = ["trainer.keep_best=null", *words, init]

        def work(folder: Path) -> dict[str, float]:
            made = finetune(self._config("finetune", words, seed, folder))
            _check_whole(made.result, folder)
            return made.metrics | {"num_labels": made.num_labels}

        return self.store.get("finetune", definition, work, start.files)


def _is_figure(key: str) -> bool:
    return key.split("/")[0] in SHOWN


def _check_whole(result: FitResult, folder: Path) -> None:
    """A signal ends the cell, resumable; a hook that gave the run up makes it a failed one."""
    if result.reason is not None:
        raise RuntimeError(f"{folder.name} was given up at step {result.step}: {result.reason}")
    if result.interrupted:
        if result.stopped_by in StopSignals.NAMES:
            raise Stopped(result.stopped_by)
        raise KeyboardInterrupt(f"{folder.name} stopped at step {result.step}")


def restored(cfg: DictConfig, seed: int, start: Start) -> HandMimTask:
    """A pretraining task as it was left, or as it begins.

    Args:
        cfg: as composed for it.
        seed: of initial weights.
        start: a last checkpoint of the store, else a backbone alone, else random weights.
    """
    cfg = cfg.copy()
    drop_unbuilt(cfg.task.losses)
    drop_unbuilt(cfg.task.heads)
    seed_everything(seed)
    task = build(cfg.task)
    if start.weights is None:
        return task.eval()
    last = start.weights.parent / LAST
    if start.is_own and last.is_file():
        task.load_state_dict(load_checkpoint(last)["task"])
    else:
        load_initial(task.export_backbone, str(start.weights))
    return task.eval()
