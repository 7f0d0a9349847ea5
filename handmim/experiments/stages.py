"""The stages of a run: pretraining, frozen probes, fine-tunings with shares of the labels."""

import logging
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from handmim.engine.checkpoint import LAST, load_checkpoint
from handmim.engine.trainer import FitResult
from handmim.engine.workers import SIGNALS, Stopped
from handmim.experiments import runs
from handmim.experiments.runs import Compose, Run, StageStore, content_sha
from handmim.experiments.table import PROBED, Overrides, arguments, decisive, fraction_name, merged
from handmim.models.pyramid import BACKBONE, neck_beside
from handmim.models.weights.load import load_initial
from handmim.pipelines.train import finetune, pretrain, setup_run
from handmim.tasks.pretrain import HandMimTask
from handmim.types import StepInfo
from handmim.utils.config import build, drop_unbuilt, flatten, sentence
from handmim.utils.files import locked, write_atomic
from handmim.utils.json_files import read_rows
from handmim.utils.seed import seed_everything

log = logging.getLogger(__name__)

PRETEXT_RUN, OWN = "unlabeled.terms.pretext.run", "own"  # the variant's own pretraining
RENDERED = "SyntheticHands"  # a set that takes long to make
FACTS = ("folder", "threads", "git_sha", "git_dirty", "commits")  # of a stage's record
SHOWN = ("loss", "features", "keypoints", "targets", "speed", "diagnostics", "collapse")

RunStages = Callable[[Run], dict[str, dict[str, Any]]]  # records by stage


class Start(NamedTuple):
    """Initial weights of the probes and fine-tunings of a run."""

    name: str  # in their definitions
    weights: Path | None = None  # backbone; None: random
    is_own: bool = True  # a stage of the store made it; other files beside it are not read


class Stages:
    """Pretraining, frozen probes and fine-tunings of a run, kept in a store."""

    def __init__(self, compose: Compose, store: StageStore) -> None:
        self.compose, self.store = compose, store

    def run(self, run: Run) -> dict[str, dict[str, Any]]:
        """Records by stage: pretrain, probe, finetune_<per cent of the labels>. Raises Stopped."""
        variant, seed = run.variant, run.seed
        records: dict[str, dict[str, Any]] = {}
        start = Start(f"random {seed}")
        # Errors of labelled sets show before pretraining, but for those that are rendered.
        probe = self._config("pretrain", variant.pretrain, seed).probe.hook
        data = self._config("finetune", variant.finetune, seed).data
        sets = [] if probe is None else [probe.train_set, probe.test_set]
        for node in (*sets, data.train, data.val):
            leaves = flatten(OmegaConf.to_container(node, resolve=True)).values()
            if not any(RENDERED in str(value) for value in leaves):
                build(node)
        if variant.is_pretrained:
            records["pretrain"] = self._pretrain(variant.pretrain, seed)
            folder = self.store.root / records["pretrain"]["folder"]
            start = Start(folder.name, folder / BACKBONE)
        elif variant.init_from is not None:
            weights = Path(variant.init_from).absolute()
            if not weights.is_file():
                raise FileNotFoundError(f"no weights at {weights} (init_from of {variant.name})")
            start = Start(content_sha(weights), weights, is_own=False)
        records["probe"] = self._probe(variant.pretrain, seed, start)
        for share in run.definition.overrides["fractions"]:
            overrides = variant.finetune | {"label_fraction": share}
            records[fraction_name(share)] = self._finetune(overrides, seed, start)
        return records

    def _config(
        self, name: str, overrides: Overrides, seed: int, folder: Path | None = None
    ) -> DictConfig:
        """Composed; with a folder to run in, where a stage that was interrupted resumes."""
        run: Overrides = {"seed": seed}
        if folder is not None:
            run |= {"paths.run_root": str(folder.parent), "name": folder.name, "resume": "auto"}
        return self.compose(name, arguments(merged(overrides, run)))

    def _pretrain(self, overrides: Overrides, seed: int) -> dict[str, Any]:
        # Pretraining reads no label.
        overrides = {k: v for k, v in overrides.items() if k.split(".")[0] != "probe"}
        overrides["probe.hook"] = None

        def work(folder: Path) -> dict[str, float]:
            made = pretrain(self._config("pretrain", overrides, seed, folder))
            _check_whole(made.result, folder)
            last = read_rows(folder / "scalars.jsonl")[-1:]
            return {k: v for row in last for k, v in row.items() if k.split("/")[0] in SHOWN}

        definition = decisive(self._config("pretrain", overrides, seed))
        return self.store.get("pretrain", definition, work)

    def _probe(self, overrides: Overrides, seed: int, start: Start) -> dict[str, Any]:
        cfg = self._config("pretrain", overrides, seed)
        if cfg.probe.hook is None:
            raise ValueError("runs are probed on labelled sets (dataset.probe: {probe: ...})")
        definition: dict[str, Any] = {"start": start.name}
        if not start.is_own:  # heads are drawn by the seed; no keypoint head is trained
            kept = [f for f in cfg.probe.features if f != "points"]
            overrides = merged(overrides, {"probe.features": kept})
            cfg = self._config("pretrain", overrides, seed)
            definition["seed"] = seed
        plain = decisive(cfg)
        definition |= {k: plain.get(k) for k in PROBED}

        def work(folder: Path) -> dict[str, float]:
            run = setup_run(self._config("pretrain", overrides, seed, folder), resume="auto")
            task = restored(cfg, seed, start).to(run.device)
            with torch.no_grad():
                metrics = build(cfg.probe.hook)(task, StepInfo(0, 1), run)
            return {key.removeprefix("probe/"): value for key, value in metrics.items()}

        return self.store.get("probe", definition, work, [start.weights] if start.weights else [])

    def _finetune(self, overrides: Overrides, seed: int, start: Start) -> dict[str, Any]:
        cfg = self._config("finetune", overrides, seed)
        definition = decisive(cfg) | {"start": start.name}
        weights = str(start.weights) if start.weights else None
        inputs = [start.weights] if start.weights else []
        if cfg.init_neck != "never" and (neck := neck_beside(weights)):
            inputs.append(neck)
            definition["neck"] = start.name if start.is_own else content_sha(neck)
        if overrides.get(PRETEXT_RUN) == OWN and start.weights:
            overrides = merged(overrides, {PRETEXT_RUN: str(start.weights.parent)})
        # Metrics are those of the last validation; best.pt is kept where it is configured.
        overrides = merged({"trainer.keep_best": None}, overrides, {"init_from": weights})

        def work(folder: Path) -> dict[str, float]:
            made = finetune(self._config("finetune", overrides, seed, folder))
            _check_whole(made.result, folder)
            return made.metrics | {"num_labels": made.num_labels}

        return self.store.get("finetune", definition, work, inputs)


def _check_whole(result: FitResult, folder: Path) -> None:
    """A signal ends the run, resumable; a hook that gave training up makes it a failed one."""
    if result.reason is not None:
        raise RuntimeError(f"{folder.name} was given up at step {result.step}: {result.reason}")
    if result.interrupted:
        if result.stopped_by in SIGNALS:
            raise Stopped(result.exit_code)
        raise KeyboardInterrupt(f"{folder.name} stopped at step {result.step}")


def restored(cfg: DictConfig, seed: int, start: Start) -> HandMimTask:
    """A pretraining task from a last checkpoint of the store, a backbone alone, or the seed."""
    cfg = cfg.copy()
    drop_unbuilt(cfg.task)
    seed_everything(seed)
    task = build(cfg.task)
    if start.weights is not None:
        last = start.weights.parent / LAST
        if start.is_own and last.is_file():
            task.load_state_dict(load_checkpoint(last)["task"])
        else:
            load_initial(task.export_backbone, str(start.weights))
    return task.eval()


def make_run(run: Run, stages: RunStages, overwrite: bool = False) -> None:
    """Make a run unless it is finished: result.json, or error.txt with what the stages raise."""
    code = runs.code_state()
    with locked(run.folder):
        if not run.needs_run(overwrite):
            log.info("%s: finished before, not run again", run.name)
            return
        if stale := runs.stale_message([run], overwrite):
            raise ValueError(stale)
        for name in (*runs.RESULTS, runs.ERROR):
            (run.folder / name).unlink(missing_ok=True)
        try:
            records = stages(run)
        except Exception as failure:  # notes of a traceback would stand behind the reason
            last = f"{type(failure).__name__}: {sentence(failure)}"
            write_atomic(run.folder / runs.ERROR, f"{traceback.format_exc()}\n{last}\n")
            raise
        result = {
            "format": runs.FORMAT,
            "variant": run.variant.name,
            "label": run.variant.label,
            "seed": run.seed,
            "metrics": runs.metrics_of(records),
            "stages": {k: {fact: of.get(fact) for fact in FACTS} for k, of in records.items()},
            **run.definition._asdict(),
            **code,
            "host": platform.node(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_atomic(run.folder / runs.RESULTS[0], runs.record_text(result))
