"""The runs of a table, their states, and which of them remain to be run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from handmim.experiments.store import FORMAT, StageStore, metrics_of, read_record
from handmim.experiments.table import (
    PROBED,
    RANDOM,
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
STAGES = ("pretrain", "finetune")  # configs that a variant's overrides compose
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
        if done is not None and self.differences():
            return "stale"
        if done is not None and self._is_held(done):
            return "finished"
        return "failed" if (self.folder / ERROR).is_file() else "open"

    def _is_held(self, done: dict[str, Any]) -> bool:
        found = {}
        for stage, facts in done["stages"].items():
            record = self.store.finished(facts["folder"])
            if record is None:
                return False
            found[stage] = record
        return metrics_of(found) == done["metrics"]

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


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs of a table."""

    table: Table
    folder: Path  # of the table
    store: StageStore
    definitions: Mapping[str, Definition]  # by variant

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


def make_plan(table: Table, folder: Path, compose: Compose, store: StageStore) -> Plan:
    """All runs of a table; ValueError names a variant whose overrides do not compose."""
    definitions = {v.name: _definition(table, v, compose) for v in table.variants}
    return Plan(table, folder, store, definitions)


def _definition(table: Table, variant: Variant, compose: Compose) -> Definition:
    configs, content, overrides = {}, {}, {}
    for stage in STAGES:
        given = getattr(variant, stage)
        configs[stage], content[stage] = _compose_stage(variant, stage, given, compose)
        overrides[stage] = {k: v for k, v in given.items() if decides(k, v)}
    more: dict[str, Any] = {"fractions": list(table.fractions)}
    if not variant.is_pretrained:  # nothing else is taken from its config
        more = {"init": variant.init_from or RANDOM} | more
        content["pretrain"] = {k: content["pretrain"].get(k) for k in PROBED}
    trains = variant.is_pretrained and configs["pretrain"].get("train", True)
    steps = {"pretrain": configs["pretrain"].trainer.max_steps} if trains else {}
    steps |= {fraction_name(f): configs["finetune"].trainer.max_steps for f in table.fractions}
    return Definition(overrides | more, digest(content), steps)


def _compose_stage(
    variant: Variant, stage: str, overrides: Mapping[str, Any], compose: Compose
) -> tuple[DictConfig, dict[str, Any]]:
    """A variant's config of one stage, and the part of it that decides the result."""
    try:
        cfg = compose(stage, arguments(overrides))
        patience = cfg.trainer.get("stop_patience")
        if patience is not None:
            raise ValueError(
                f"stop_patience={patience}, but a table gives every run its whole length: "
                "trainer.stop_patience=null"
            )
        return cfg, decisive(cfg)
    except Exception as error:  # hydra's and omegaconf's have no common base
        raise ValueError(
            f"variant {variant.name} does not compose for {stage}: {sentence(error)} (overrides of "
            f"all variants: '{stage}={{KEY: VALUE}}')"
        ) from error
