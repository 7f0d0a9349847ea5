from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from handmim.ablation.files import json_text
from handmim.ablation.plan import Cell, Plan, plan
from handmim.ablation.store import STAGE, StageStore
from handmim.ablation.table import read_table

REPO = Path(__file__).parents[2]
PRETRAIN_STEPS = 10


@pytest.fixture
def hydra_configs():
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        yield compose


def small(steps: int) -> DictConfig:
    return OmegaConf.create({"trainer": {"max_steps": steps}, "machine": {"precision": "32-true"}})


def fake_compose(name: str, words: list[str]) -> DictConfig:
    """As much of a config as a plan looks at; `bad=` does not compose, `same=` changes nothing."""
    if any(w.startswith("bad=") for w in words):
        raise ValueError("Could not override 'bad'")
    cfg = small(PRETRAIN_STEPS if name == "pretrain" else 5)
    cfg.words = [w for w in words if not w.startswith("same=")]
    return cfg


def ablate_config(**changes) -> DictConfig:
    """A composed configs/ablate.yaml of two variants, without Hydra."""
    content = {
        "name": "objectives-test",
        "seeds": 2,
        "rows": None,
        "cell": None,
        "pretrain": [],
        "finetune": ["wd=1"],
        "overwrite": False,
        "machine": {"num_threads": 1},
        "paths": {"data_dir": "data", "run_root": "runs"},
        "setting": {"pretrain": ["data=a"], "probe": ["probe=a"], "finetune": ["data=a"]},
        "budget": {
            "pretrain": ["trainer.max_steps=10"],
            "finetune": ["lr=1"],
            "fractions": [0.05, 1.0],
        },
        "columns": {
            "probe/cls/mpjpe_mm": {"label": "probe, mm"},
            "finetune_5/pck10": {"label": "PCK", "decimals": 3, "better": "higher"},
            "finetune_20/mpjpe_mm": {"label": "never made"},
        },
        "table": {
            "title": "Objectives",
            "question": "Which pay?",
            "rows": {
                "random": {"label": "random init", "pretrain": None},
                "patch": {"pretrain": ["loss=[patch]"]},
            },
        },
    }
    return OmegaConf.merge(content, changes)


def planned(folder: Path, **changes) -> Plan:
    """Of the table above; stages lie beside its cells."""
    table = read_table(ablate_config(**changes))
    return plan(table, folder, fake_compose, StageStore(folder / "stages"))


class FakeRuns:
    """Stages whose figures follow from row and seed.

    Args:
        dies_after: raises after that many cells.
        broken: cells that fail.
        figures: of single cells, in place of their own.
        **facts: further entries of every record.
    """

    def __init__(
        self,
        dies_after: int | None = None,
        broken: tuple[str, ...] = (),
        figures: dict[str, dict[str, float]] | None = None,
        **facts,
    ) -> None:
        self.dies_after, self.broken, self.ran = dies_after, broken, []
        self.figures, self.facts = figures or {}, facts

    def run(self, cell: Cell) -> dict:
        if self.dies_after is not None and len(self.ran) == self.dies_after:
            raise KeyboardInterrupt
        if cell.name in self.broken:
            error = FloatingPointError("the loss is not finite at step 7")
            error.add_note("while building data.train")
            raise error
        self.ran.append(cell.name)
        value = 10.0 + 5.0 * (cell.row.name == "random") + cell.seed
        probe = self.figures.get(cell.name, {"cls/mpjpe_mm": value})
        made = {"probe": probe, "finetune_5": {"pck10": 1.0 / value}}
        return {stage: self._kept(cell, stage, figures) for stage, figures in made.items()}

    def _kept(self, cell: Cell, stage: str, figures: dict[str, float]) -> dict:
        folder = cell.store.root / f"{stage}-{cell.row.name}-{cell.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "figures": figures,
            "seconds": 2.0,
            "cpu_seconds": 1.5,
            "threads": 1,
            "folder": folder.name,
            "git_sha": "0123456789abcdef",
            "git_dirty": False,
            **self.facts,
        }
        (folder / STAGE).write_text(json_text(record))
        return record
