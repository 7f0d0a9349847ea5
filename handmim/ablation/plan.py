"""The cells of a table, what has become of them, and what remains to be run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from handmim.ablation.files import read_record
from handmim.ablation.overrides import PROBED, decides, decisive, digest
from handmim.ablation.store import StageStore, figures_of
from handmim.ablation.table import Row, Table, fraction_name
from handmim.engine.best import BestRule
from handmim.pipelines.preflight import path_problems
from handmim.utils.messages import sentence

Compose = Callable[[str, list[str]], DictConfig]
CELL, ERROR = "cell.json", "error.txt"
CONFIGS = ("pretrain", "finetune")  # what the words of a row compose
STATES = ("finished", "failed", "stale", "open")
SEED_FOLDER = re.compile(r"seed_(-?\d+)")


@dataclass(frozen=True, slots=True)
class Cell:
    """One row with one seed.

    Attributes:
        row: the variant.
        seed: of pretraining, of the choice of labels and of fine-tuning.
        folder: takes cell.json, or error.txt.
        store: of the stages it is made of.
        overrides: all that was asked for and decides the figures, by stage.
        config_sha: of the composed configs behind it.
        steps: optimizer steps by stage.
        problems: files and folders that its configs name and that cannot be used.
    """

    row: Row
    seed: int
    folder: Path
    store: StageStore
    overrides: dict[str, list[str]]
    config_sha: str
    steps: dict[str, int]
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As `cell=` takes it."""
        return f"{self.row.name}/{self.seed}"

    def read(self) -> dict[str, Any] | None:
        """The finished cell as written, whatever it was made for; None before."""
        path = self.folder / CELL
        return read_record(path) if path.is_file() else None

    def differences(self) -> list[str]:
        """What a finished cell was made with and is no longer asked for, and the reverse.

        Empty where other words compose to the very configs that it was made of.
        """
        done = self.read()
        if done is None or self._means_the_same(done):
            return []
        found = []
        for stage in sorted(set(done["overrides"]) | set(self.overrides)):
            words = (sides.get(stage, []) for sides in (done["overrides"], self.overrides))
            there, here = ({word for word in side if decides(word)} for side in words)
            found += [f"{stage}: -{word}" for word in sorted(there - here)]
            found += [f"{stage}: +{word}" for word in sorted(here - there)]
        return found

    def _means_the_same(self, done: dict[str, Any]) -> bool:
        beside = [
            {k: words for k, words in overrides.items() if k not in CONFIGS}
            for overrides in (done["overrides"], self.overrides)
        ]
        return done["config_sha"] == self.config_sha and beside[0] == beside[1]

    @property
    def is_outdated(self) -> bool:
        """Finished with these overrides, but other defaults in configs/ behind them."""
        done = self.read()
        return done is not None and done["config_sha"] != self.config_sha

    @property
    def state(self) -> str:
        """One of STATES. Stale is what has `differences`; finished is any other cell while its
        stages are there and hold what it says; an error counts until then."""
        done = self.read()
        if done is not None and self.differences():
            return "stale"
        if done is not None and self._is_held(done):
            return "finished"
        return "failed" if (self.folder / ERROR).is_file() else "open"

    def _is_held(self, done: dict[str, Any]) -> bool:
        """Whether every stage of a cell as written is finished, with the figures written there."""
        records = {}
        for stage, facts in done["stages"].items():
            record = self.store.finished(facts["folder"])
            if record is None:
                return False
            records[stage] = record
        return figures_of(records) == done["figures"]

    def needs_run(self, overwrite: bool) -> bool:
        """Whether there is anything to do.

        Args:
            overwrite: what was made for another definition or under other defaults is made again.
        """
        return self.state != "finished" or (overwrite and self.is_outdated)


class Part(NamedTuple):
    """What a row's cells share, whatever the seed: fields of `Cell`."""

    overrides: dict[str, list[str]]
    config_sha: str
    steps: dict[str, int]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells of a table.

    Attributes:
        table: as read.
        folder: of the table.
        store: of stages.
        parts: by row.
    """

    table: Table
    folder: Path
    store: StageStore
    parts: Mapping[str, Part]

    def _cell(self, row: Row, seed: int) -> Cell:
        where = self.folder / row.name / f"seed_{seed}"
        return Cell(row, seed, where, self.store, *self.parts[row.name])

    def chosen(self) -> list[Cell]:
        """Cells to be run, seed by seed, so that early cells already make a whole table."""
        rows = [row for row in self.table.rows if row.name in self.table.chosen]
        return [self._cell(row, seed) for seed in self.table.seeds for row in rows]

    def shown(self) -> list[Cell]:
        """The chosen cells and whatever else of the table is finished now, seed by seed."""
        chosen = {(cell.row.name, cell.seed) for cell in self.chosen()}
        cells = []
        for row in self.table.rows:
            seeds = {seed for name, seed in chosen if name == row.name}
            for seed in sorted(seeds | _seeds_of(self.folder / row.name)):
                cell = self._cell(row, seed)
                if seed in seeds or cell.state == "finished":
                    cells.append(cell)
        return sorted(cells, key=lambda cell: cell.seed)


def _seeds_of(folder: Path) -> set[int]:
    found = (SEED_FOLDER.fullmatch(path.parent.name) for path in folder.glob(f"*/{CELL}"))
    return {int(match[1]) for match in found if match}


def plan(table: Table, folder: Path, compose: Compose, store: StageStore) -> Plan:
    """All cells of a table.

    Every config is composed before anything runs: a misspelt override is known at once.

    Args:
        table: as read.
        folder: of the table.
        compose: (config name, overrides) -> config.
        store: of stages.
    Raises: ValueError naming the row whose overrides do not compose.
    """
    parts = {row.name: _composed(table, row, compose) for row in table.rows}
    return Plan(table, folder, store, parts)


def _composed(table: Table, row: Row, compose: Compose) -> Part:
    asked = {"pretrain": list(row.pretrain), "finetune": list(row.finetune)}
    made = {stage: _compose_row(row, stage, words, compose) for stage, words in asked.items()}
    configs = {stage: cfg for stage, (cfg, _) in made.items()}
    overrides = {stage: [w for w in words if decides(w)] for stage, words in asked.items()}
    content = {stage: plain for stage, (_, plain) in made.items()}
    if not row.is_pretrained:  # nothing else is taken from its config
        overrides["start"] = [row.init_from or "random"]
        content["pretrain"] = {k: content["pretrain"].get(k) for k in PROBED}
    trains = row.is_pretrained and configs["pretrain"].get("train", True)
    steps = {"pretrain": configs["pretrain"].trainer.max_steps} if trains else {}
    steps |= {fraction_name(f): configs["finetune"].trainer.max_steps for f in table.fractions}
    overrides["fractions"] = [str(f) for f in table.fractions]
    problems = [p for cfg in configs.values() for p in path_problems(cfg, parse=True)]
    if row.init_from is not None and not Path(row.init_from).is_file():
        problems.append(f"no weights at {row.init_from} (init_from)")
    return Part(overrides, digest(content), steps, tuple(dict.fromkeys(problems)))


def _compose_row(
    row: Row, stage: str, words: list[str], compose: Compose
) -> tuple[DictConfig, dict[str, Any]]:
    """A row's config of one stage, and the part of it that decides the result."""
    try:
        cfg = compose(stage, words)
        _check_trainer(cfg.trainer)
        return cfg, decisive(cfg)
    except Exception as error:  # hydra's and omegaconf's have no common base
        raise ValueError(
            f"row {row.name} does not compose for {stage}: {sentence(error)} (words for all rows: "
            f"'{stage}=[...]')"
        ) from error


def _check_trainer(trainer: DictConfig) -> None:
    """Refuse what would end a stage early or at its first validation.

    Raises: ValueError naming the key.
    """
    patience = trainer.get("stop_patience")
    if patience is not None:
        raise ValueError(
            f"stop_patience={patience}, but a table gives every cell its whole length: "
            "trainer.stop_patience=null"
        )
    BestRule(trainer.get("keep_best"))
