"""The runs of a table, their states, and which of them remain to be run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from handmim.experiments.store import FORMAT, StageStore, metrics_of, read_record
from handmim.experiments.table import (
    PROBED,
    RANDOM,
    STAGES,
    Table,
    Variant,
    arguments,
    decides,
    decisive,
    digest,
    fraction_name,
    value_text,
)
from handmim.utils.config import sentence

Compose = Callable[[str, list[str]], DictConfig]
RESULTS = ("result.json", "cell.json")  # the second is of format 1
ERROR = "error.txt"
SEED_FOLDER = re.compile(r"seed_(-?\d+)")


class Definition(NamedTuple):
    """What the runs of a variant are made of, whatever the seed."""

    overrides: dict[str, Any]  # that decide the result, by stage; `init` and `fractions` beside
    config_sha: str  # of the composed configs behind it
    steps: dict[str, int]  # optimizer steps by stage


@dataclass(frozen=True, slots=True)
class Run:
    """One variant with one seed, which pretraining, choice of labels and fine-tuning share."""

    variant: Variant
    seed: int
    folder: Path  # holds result.json, or error.txt
    store: StageStore
    definition: Definition

    @property
    def name(self) -> str:
        """As `run=` takes it."""
        return f"{self.variant.name}/{self.seed}"

    def result_file(self) -> Path | None:
        """The written result, perhaps of format 1; None before."""
        paths = (self.folder / name for name in RESULTS)
        return next((path for path in paths if path.is_file()), None)

    def read(self) -> dict[str, Any] | None:
        """The result as written, whatever its definition was; None before."""
        path = self.result_file()
        return None if path is None else read_record(path)

    def differences(self) -> list[str]:
        """What a finished run was made with and is no longer requested (-), and the reverse (+);
        empty where other overrides compose to the same configs, and for an older format."""
        done = self.read()
        if done is None or done["format"] != FORMAT:
            return []
        is_same = done["config_sha"] == self.definition.config_sha
        old, new = (_items(d, is_same) for d in (done["overrides"], self.definition.overrides))
        return [*(f"-{i}" for i in sorted(old - new)), *(f"+{i}" for i in sorted(new - old))]

    @property
    def is_outdated(self) -> bool:
        """Finished, but with other defaults in configs/ behind its overrides, or by an older
        format."""
        done, sha = self.read(), self.definition.config_sha
        return done is not None and (done["format"] != FORMAT or done["config_sha"] != sha)

    @property
    def state(self) -> str:
        """`stale` with differences; `finished` while its stages exist and hold its metrics;
        `failed` after an error; else `open`."""
        done = self.read()
        if done is not None:
            if self.differences():
                return "stale"
            folders = {stage: facts["folder"] for stage, facts in done["stages"].items()}
            held = {s: r for s, f in folders.items() if (r := self.store.finished(f))}
            if metrics_of(held) == done["metrics"]:
                return "finished"
        return "failed" if (self.folder / ERROR).is_file() else "open"

    def needs_run(self, overwrite: bool) -> bool:
        """Whether there is anything to do; `overwrite` makes outdated runs again."""
        return self.state != "finished" or (overwrite and self.is_outdated)


def _items(overrides: Mapping[str, Any], is_composed: bool) -> set[str]:
    """What decides the result, as texts; without the overrides of configs that are compared."""
    items = {f"{k}={value_text(v)}" for k, v in overrides.items() if k not in STAGES}
    for stage in () if is_composed else STAGES:
        kept = ((k, v) for k, v in overrides[stage].items() if decides(k, v))
        items |= {f"{k}={value_text(v)} ({stage})" for k, v in kept}
    return items


class Plan:
    """The runs of a table, below its `folder`. Raises: ValueError naming a variant whose overrides
    do not compose."""

    def __init__(self, table: Table, folder: Path, compose: Compose, store: StageStore) -> None:
        self.table, self.folder, self.store = table, folder, store
        composed = cache(lambda stage, *words: compose(stage, list(words)))  # many are shared
        self.configs: dict[str, dict[str, DictConfig]] = {}  # by variant and stage
        self.definitions: dict[str, Definition] = {}
        for variant in table.variants:
            configs, content = {}, {}
            for stage in STAGES:
                try:
                    cfg = composed(stage, *arguments(getattr(variant, stage)))
                    if (patience := cfg.trainer.get("stop_patience")) is not None:
                        raise ValueError(
                            f"stop_patience={patience}, but a table gives every run its whole "
                            "length: trainer.stop_patience=null"
                        )
                    configs[stage], content[stage] = cfg, decisive(cfg)
                except Exception as error:  # hydra's and omegaconf's have no common base
                    raise ValueError(
                        f"variant {variant.name} does not compose for {stage}: {sentence(error)} "
                        f"(overrides of all variants: '{stage}={{KEY: VALUE}}')"
                    ) from error
            self.configs[variant.name] = configs
            self.definitions[variant.name] = _definition(table, variant, configs, content)

    def _run(self, variant: Variant, seed: int) -> Run:
        folder = self.folder / variant.name / f"seed_{seed}"
        return Run(variant, seed, folder, self.store, self.definitions[variant.name])

    def chosen(self) -> list[Run]:
        """Runs that are requested, seed by seed: early ones already make a whole table."""
        variants = [v for v in self.table.variants if v.name in self.table.chosen]
        return [self._run(variant, seed) for seed in self.table.seeds for variant in variants]

    def shown(self) -> list[Run]:
        """The chosen runs and all other finished ones of the table, seed by seed."""
        runs = []
        for variant in self.table.variants:
            chosen = set(self.table.seeds) if variant.name in self.table.chosen else set()
            files = [f for n in RESULTS for f in (self.folder / variant.name).glob(f"*/{n}")]
            found = [SEED_FOLDER.fullmatch(file.parent.name) for file in files]
            for seed in chosen | {int(match[1]) for match in found if match}:
                run = self._run(variant, seed)
                if seed in chosen or run.state == "finished":
                    runs.append(run)
        return sorted(runs, key=lambda run: run.seed)


def _definition(
    table: Table, variant: Variant, configs: Mapping[str, DictConfig], content: dict[str, Any]
) -> Definition:
    overrides: dict[str, Any] = {
        stage: {k: v for k, v in getattr(variant, stage).items() if decides(k, v)}
        for stage in STAGES
    }
    if not variant.is_pretrained:  # nothing else is taken from its config
        overrides["init"] = variant.init_from or RANDOM
        content = content | {"pretrain": {k: content["pretrain"].get(k) for k in PROBED}}
    overrides["fractions"] = list(table.fractions)
    trains = variant.is_pretrained and configs["pretrain"].get("train", True)
    steps = {"pretrain": configs["pretrain"].trainer.max_steps} if trains else {}
    steps |= {fraction_name(f): configs["finetune"].trainer.max_steps for f in table.fractions}
    return Definition(overrides, digest(content), steps)
