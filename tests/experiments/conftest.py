from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from handmim.experiments.runs import FORMAT, STAGE, Plan, Run, StageStore, record_text
from handmim.experiments.table import arguments, read_table
from handmim.utils.entry import compose

REPO = Path(__file__).parents[2]
PRETRAIN_STEPS = 10


@pytest.fixture
def hydra_configs():
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        yield compose


def composed(compose, name, overrides) -> DictConfig:
    """A config from overrides by key."""
    return compose(name, arguments(overrides))


def small(steps: int) -> DictConfig:
    return OmegaConf.create({"trainer": {"max_steps": steps}, "machine": {"precision": "32-true"}})


def fake_compose(name: str, overrides: list[str]) -> DictConfig:
    """As much of a config as a plan reads; `bad=` does not compose, `same=` changes nothing."""
    if any(o.startswith("bad=") for o in overrides):
        raise ValueError("Could not override 'bad'")
    cfg = small(PRETRAIN_STEPS if name == "pretrain" else 5)
    cfg.overrides = [o for o in overrides if not o.startswith("same=")]
    return cfg


def table_config(**changes) -> DictConfig:
    """A composed configs/experiments.yaml of two variants, without Hydra."""
    content = {
        "name": "objectives-test",
        "seeds": 2,
        "variants": None,
        "run": None,
        "pretrain": None,
        "finetune": {"wd": 1},
        "overwrite": False,
        "machine": {"num_threads": 1},
        "paths": {"data_dir": "data", "run_root": "runs"},
        "dataset": {"pretrain": {"data": "a"}, "probe": {"probe": "a"}, "finetune": {"data": "a"}},
        "budget": "few",
        "budgets": {
            "few": {
                "pretrain": {"trainer.max_steps": 10},
                "finetune": {"lr": 1},
                "fractions": [0.05, 1.0],
            },
        },
        "columns": {
            "probe/cls/mpjpe_mm": {"label": "probe, mm"},
            "finetune_5/pck10": {"label": "PCK", "decimals": 3, "better": "higher"},
            "finetune_20/mpjpe_mm": {"label": "never made"},
        },
        "table": {
            "title": "Objectives",
            "question": "Which help?",
            "variants": {
                "random": {"label": "random init", "pretrain": None},
                "patch": {"pretrain": {"loss": ["patch"]}},
            },
        },
    }
    return OmegaConf.merge(content, changes)


def planned(folder: Path, **changes) -> Plan:
    """Of the table above; stages lie beside its runs."""
    table = read_table(table_config(**changes))
    return Plan(table, folder, fake_compose, StageStore(folder / "stages"))


class FakeStages:
    """Stages whose metrics follow from variant and seed.

    Args:
        dies_after: raises after that many runs.
        broken: runs that fail.
        metrics: of single runs, in place of their own.
        **facts: further entries of every record.
    """

    def __init__(
        self,
        dies_after: int | None = None,
        broken: tuple[str, ...] = (),
        metrics: dict[str, dict[str, float]] | None = None,
        **facts,
    ) -> None:
        self.dies_after, self.broken, self.ran = dies_after, broken, []
        self.metrics, self.facts = metrics or {}, facts

    def run(self, run: Run) -> dict:
        if self.dies_after is not None and len(self.ran) == self.dies_after:
            raise KeyboardInterrupt
        if run.name in self.broken:
            error = FloatingPointError("the loss is not finite at step 7")
            error.add_note("while building data.train")
            raise error
        self.ran.append(run.name)
        value = 10.0 + 5.0 * (run.variant.name == "random") + run.seed
        probe = self.metrics.get(run.name, {"cls/mpjpe_mm": value})
        made = {"probe": probe, "finetune_5": {"pck10": 1.0 / value}}
        return {stage: self.kept(run, stage, metrics) for stage, metrics in made.items()}

    def kept(self, run: Run, stage: str, metrics: dict[str, float]) -> dict:
        folder = run.store.root / f"{stage}-{run.variant.name}-{run.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "format": FORMAT,
            "metrics": metrics,
            "seconds": 2.0,
            "cpu_seconds": 1.5,
            "threads": 1,
            "folder": folder.name,
            "git_sha": "0123456789abcdef",
            "git_dirty": False,
            **self.facts,
        }
        (folder / STAGE).write_text(record_text(record))
        return record
