"""The tables that come with the project: read, and every variant of them built."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from handmim.experiments.runs import Plan, StageStore
from handmim.experiments.table import read_table
from handmim.utils.config import drop_unbuilt
from tests.experiments.conftest import REPO, composed

TABLES = sorted(p.stem for p in (REPO / "configs" / "table").glob("*.yaml"))
DATASETS = {
    "renders": {},
    **{
        name: {"dataset.root": "a b", "dataset.annotations": "c=d.json"}
        for name in ("photos", "sim_to_real")
    },
}
OPTIONS = OmegaConf.load(REPO / "configs" / "experiments.yaml")


def table_of(compose, name, dataset="renders", budget="smoke", **more):
    given = {"table": name, "name": "t", "dataset": dataset, "budget": budget}
    return read_table(composed(compose, "experiments", given | DATASETS[dataset] | more))


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_and_their_variants_differ(name, hydra_configs):
    table = table_of(hydra_configs, name)
    assert len({v.label for v in table.variants}) == len(table.variants) > 1
    given = {str((v.pretrain, v.finetune, v.is_pretrained)) for v in table.variants}
    assert len(given) == len(table.variants)
    assert table.title
    assert table.question.endswith("?") or "." in table.question


def test_every_dataset_is_tried():
    assert {p.stem for p in (REPO / "configs" / "dataset").glob("*.yaml")} == set(DATASETS)


@pytest.mark.parametrize("budget", sorted(OPTIONS.budgets))
def test_every_budget_composes_at_one_size(budget, hydra_configs):
    table = table_of(hydra_configs, "controls", budget=budget)
    runs = Plan(table, Path("x"), hydra_configs, StageStore(Path("x"))).chosen()
    by_name = {run.variant.name: run for run in runs}
    long, short = by_name["handmim_long"], by_name["handmim"]
    assert all(
        long.definition.steps[k] > v for k, v in short.definition.steps.items() if k != "pretrain"
    )
    keys = {column.key for column in table.columns}
    assert {f"{name}/mpjpe_mm" for name in short.definition.steps if name != "pretrain"} <= keys
    made = [
        composed(hydra_configs, stage, getattr(short.variant, stage))
        for stage in ("pretrain", "finetune")
    ]
    assert len({(cfg.task.backbone.arch, cfg.task.backbone.img_px) for cfg in made}) == 1
    precision = "bf16-mixed" if budget == "gpu" else "32-true"
    assert [cfg.machine.precision for cfg in made] == [precision] * 2


def test_precision_given_for_all_wins_over_the_budget(hydra_configs):
    more = {"budget": "gpu", "machine.precision": "16-mixed"}
    variant = table_of(hydra_configs, "controls", **more).variants[0]
    assert composed(hydra_configs, "finetune", variant.finetune).machine.precision == "16-mixed"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.stop_patience", 5, r"stop_patience=5.*every run its whole length.*null"),
    ],
)
def test_what_would_end_a_fine_tune_of_a_table_is_refused_before_anything_runs(
    key, value, message, hydra_configs
):
    table = table_of(hydra_configs, "controls", finetune={key: value})
    with pytest.raises(ValueError, match=rf"variant \w+ .*finetune: .*{message}"):
        Plan(table, Path("x"), hydra_configs, StageStore(Path("x")))


def test_photos_may_lie_in_any_folder(hydra_configs):
    table = table_of(hydra_configs, "controls", "photos")
    (run, *_) = Plan(table, Path("x"), hydra_configs, StageStore(Path("x"))).chosen()
    assert run.definition.steps == {"finetune_50": 3, "finetune_100": 3}
    cfg = composed(hydra_configs, "finetune", run.variant.finetune)
    assert cfg.data.root == "a b"
    assert cfg.data.annotations == "c=d.json"
    assert composed(hydra_configs, "pretrain", run.variant.pretrain).probe.root == "a b"


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_every_variant_builds_its_task(name, hydra_configs):
    table = table_of(hydra_configs, name, name if name in DATASETS else "renders")
    Plan(table, Path("x"), hydra_configs, StageStore(Path("x")))
    for variant in table.variants:
        cfg = composed(hydra_configs, "pretrain", variant.pretrain)
        drop_unbuilt(cfg.task)
        task = instantiate(cfg.task)
        assert set(task.objectives) == set(cfg.task.objectives), variant.name
        instantiate(cfg.views)
