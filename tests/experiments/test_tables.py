"""The tables that come with the project: read, and every variant of them built."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from handmim.experiments.runs import Plan, StageStore
from handmim.experiments.table import read_table
from handmim.pipelines.train import join_unlabeled, reads_crops
from handmim.utils.config import drop_unbuilt
from tests.experiments.conftest import REPO, composed

TABLES = sorted(p.stem for p in (REPO / "configs" / "table").glob("*.yaml"))
DATASETS = {
    "renders": {},
    **{
        name: {"dataset.root": "a b", "dataset.annotations": "c=d.json"}
        for name in ("photos", "pool", "sim_to_real")
    },
}
DATASETS["sim_to_real"]["dataset.pool"] = "e f"
# What a table is made for, where that is not the default.
MADE_FOR = {"sim_to_real": "sim_to_real", "compute": "pool", "scaling": "pool"}
OPTIONS = OmegaConf.load(REPO / "configs" / "experiments.yaml")


def table_of(compose, name, dataset="renders", budget="smoke", **more):
    given = {"table": name, "name": "t", "dataset": dataset, "budget": budget}
    return read_table(composed(compose, "experiments", given | DATASETS[dataset] | more))


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_and_their_variants_differ(name, hydra_configs):
    table = table_of(hydra_configs, name, MADE_FOR.get(name, "renders"))
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


def planned(hydra_configs, name, **more):
    """Runs of a table on a pool by variant, and their composed configs by stage."""
    given = {"budget": "cpu_photos", "dataset.split_by": "person", **more}
    table = table_of(hydra_configs, name, "pool", **given)
    plan = Plan(table, Path("x"), hydra_configs, StageStore(Path("x")))
    return {run.variant.name: run for run in plan.chosen() if run.seed == 0}, plan.configs


@pytest.mark.parametrize("name", ["rivals", "label_efficiency", "compute", "scaling"])
def test_a_pool_leaves_out_what_is_tested(name, hydra_configs):
    _, configs = planned(hydra_configs, name, **{"dataset.val_fraction": 0.2})
    for stages in configs.values():
        pool, tested = stages["pretrain"].data.train, stages["finetune"].data.val
        assert (tested.split, tested.val_fraction, tested.split_by) == ("val", 0.2, "person")
        shared = {key: tested[key] for key in ("annotations", "val_fraction", "split_by")}
        assert pool.held_back == shared
        assert pool.held_back == {k: stages["pretrain"].probe.hook.test_set[k] for k in shared}
        assert list(stages["finetune"].task.losses) == ["joints3d", "joints2d", "prior"]


def test_equal_compute_gives_scratch_the_steps_of_pretraining(hydra_configs):
    runs, _ = planned(hydra_configs, "compute")
    steps = {name: run.definition.steps for name, run in runs.items()}
    short, long = steps["scratch"], steps["scratch_long"]
    assert short.keys() == {"finetune_5", "finetune_20", "finetune_100"}
    budget = OPTIONS.budgets.cpu_photos
    assert set(short.values()) == {budget.finetune["trainer.max_steps"]}
    assert set(long.values()) == {budget.long_steps}
    assert steps["handmim"] == {"pretrain": 6000, **short}
    assert steps["handmim_long"] == {"pretrain": 6000, **long}


def test_scaling_varies_steps_and_images_one_at_a_time(hydra_configs):
    runs, configs = planned(hydra_configs, "scaling")
    found = {
        name: (runs[name].definition.steps["pretrain"], stages["pretrain"].data.train.limit)
        for name, stages in configs.items()
        if name != "random"
    }
    assert found == {
        "steps_1500": (1500, None),
        "steps_6000": (6000, None),
        "steps_24000": (24000, None),
        "pool_1000": (6000, 1000),
        "pool_5000": (6000, 5000),
    }
    compute, _ = planned(hydra_configs, "compute")  # its pretraining is not made twice
    own, other = runs["steps_6000"].variant.pretrain, compute["handmim"].variant.pretrain
    assert {k: str(v) for k, v in own.items()} == {k: str(v) for k, v in other.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_every_variant_builds_its_tasks(name, hydra_configs):
    budget = {"sim_to_real": "cpu_mesh"}.get(name, "smoke")
    table = table_of(hydra_configs, name, MADE_FOR.get(name, "renders"), budget)
    Plan(table, Path("x"), hydra_configs, StageStore(Path("x")))
    tuned = {}  # by overrides, which most variants share
    for variant in table.variants:
        cfg = composed(hydra_configs, "pretrain", variant.pretrain)
        drop_unbuilt(cfg.task)
        task = instantiate(cfg.task)
        assert set(task.objectives) == set(cfg.task.objectives), variant.name
        instantiate(cfg.views)
        if (key := str(variant.finetune)) in tuned:
            continue
        cfg = composed(hydra_configs, "finetune", variant.finetune)
        tuned[key], settings = instantiate(cfg.task), cfg.get("unlabeled")
        # The pretraining that goes on is a run of the table, which is not there yet.
        if settings is not None and reads_crops(settings) and "pretext" not in settings.terms:
            join_unlabeled(settings, tuned[key], instantiate(cfg.augment))
            assert set(tuned[key].terms) == set(settings.terms), variant.name
