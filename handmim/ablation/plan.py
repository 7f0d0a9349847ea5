"""The cells of a table, what has become of them, and what remains to be run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from handmim.ablation.overrides import decides, decisive, digest
from handmim.ablation.table import Row, Table, fraction_name

Compose = Callable[[str, list[str]], DictConfig]
CELL, ERROR = "cell.json", "error.txt"
STATES = ("finished", "failed", "stale", "open")


@dataclass(frozen=True, slots=True)
class Cell:
    """One row with one seed.

    Attributes:
        row: the variant.
        seed: of pretraining, of the choice of labels and of fine-tuning.
        folder: takes cell.json, or error.txt.
        overrides: all that was asked for and decides the figures, by stage.
        config_sha: of the composed configs behind it.
        steps: optimizer steps by stage.
    """

    row: Row
    seed: int
    folder: Path
    overrides: dict[str, list[str]]
    config_sha: str
    steps: dict[str, int]

    @property
    def name(self) -> str:
        """As `cell=` takes it."""
        return f"{self.row.name}/{self.seed}"

    @property
    def fingerprint(self) -> str:
        """Of the overrides: another fingerprint is another experiment."""
        return digest({k: sorted(v) for k, v in self.overrides.items()})

    def read(self) -> dict[str, Any] | None:
        """The finished cell as written, whatever it was made for; None before."""
        path = self.folder / CELL
        return json.loads(path.read_text()) if path.is_file() else None

    def differences(self) -> list[str]:
        """What a finished cell was made with and is no longer asked for, and the reverse."""
        done = self.read()
        if done is None:
            return []
        found = []
        for stage in sorted(set(done["overrides"]) | set(self.overrides)):
            there, here = set(done["overrides"].get(stage, [])), set(self.overrides.get(stage, []))
            found += [f"{stage}: -{word}" for word in sorted(there - here)]
            found += [f"{stage}: +{word}" for word in sorted(here - there)]
        return found

    @property
    def is_outdated(self) -> bool:
        """Finished with these overrides, but other defaults in configs/ behind them."""
        done = self.read()
        return done is not None and done["config_sha"] != self.config_sha

    @property
    def state(self) -> str:
        """One of STATES; an error counts until the cell is finished."""
        if (self.folder / CELL).is_file():
            return "stale" if self.differences() else "finished"
        return "failed" if (self.folder / ERROR).is_file() else "open"


def plan(table: Table, folder: Path, compose: Compose) -> list[Cell]:
    """All cells of a table, seed by seed, so that early cells already make a whole table.

    Every config is composed before anything runs: a misspelt override is known at once.

    Args:
        table: as read.
        folder: of the table.
        compose: (config name, overrides) -> config.
    Raises: ValueError naming the row whose overrides do not compose.
    """
    known: dict[tuple[str, ...], DictConfig] = {}  # most rows share one of their two configs

    def once(name: str, words: list[str]) -> DictConfig:
        key = (name, *words)
        if key not in known:
            known[key] = compose(name, words)
        return known[key]

    parts = {row.name: _composed(table, row, once) for row in table.rows}
    cells = []
    for seed in table.seeds:
        for row in table.rows:
            overrides, config_sha, steps = parts[row.name]
            where = folder / row.name / f"seed_{seed}"
            cells.append(Cell(row, seed, where, overrides, config_sha, steps))
    return cells


def _composed(
    table: Table, row: Row, compose: Compose
) -> tuple[dict[str, list[str]], str, dict[str, int]]:
    asked = {"pretrain": list(row.pretrain), "finetune": list(row.finetune)}
    configs = {stage: _compose_row(row, stage, words, compose) for stage, words in asked.items()}
    overrides = {stage: [w for w in words if decides(w)] for stage, words in asked.items()}
    content = {stage: decisive(cfg) for stage, cfg in configs.items()}
    if not row.is_pretrained:  # only backbone, data and probe are taken from its config
        overrides["start"] = [row.init_from or "random"]
        content["pretrain"] = {k: content["pretrain"].get(k) for k in ("probe", "data")}
    steps = {"pretrain": configs["pretrain"].trainer.max_steps} if row.is_pretrained else {}
    steps |= {fraction_name(f): configs["finetune"].trainer.max_steps for f in table.fractions}
    overrides["fractions"] = [str(f) for f in table.fractions]
    return overrides, digest(content), steps


def _compose_row(row: Row, stage: str, words: list[str], compose: Compose) -> DictConfig:
    try:
        return compose(stage, words)
    except Exception as error:  # hydra's and omegaconf's have no common base
        raise ValueError(f"row {row.name} does not compose for {stage}: {error}") from error
