"""The tables that come with the project: read, and every row of them built."""

from pathlib import Path

import pytest
from hydra.utils import instantiate

from handmim.ablation.plan import plan
from handmim.ablation.store import StageStore
from handmim.ablation.table import read_table
from handmim.utils.config import drop_unbuilt
from tests.ablation.conftest import REPO

TABLES = sorted(p.stem for p in (REPO / "configs" / "table").glob("*.yaml"))
SETTINGS = {
    "renders": [],
    "renders_large": [],
    "photos": ["setting.root=a b", "setting.annotations=c=d.json"],
    "sim_to_real": ["setting.root=a b", "setting.annotations=c=d.json"],
}


def table_of(compose, name, setting="renders", budget="smoke"):
    words = [f"table={name}", "name=t", f"setting={setting}", f"budget={budget}"]
    words += [f"{key}='{value}'" for key, value in (w.split("=", 1) for w in SETTINGS[setting])]
    return read_table(compose("ablate", words))


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_and_their_rows_differ(name, hydra_configs):
    table = table_of(hydra_configs, name)
    assert len({row.label for row in table.rows}) == len(table.rows) > 2
    told = {(row.pretrain, row.finetune, row.is_pretrained) for row in table.rows}
    assert len(told) == len(table.rows)
    assert table.title
    assert table.question.endswith("?") or "." in table.question


def test_every_setting_is_tried():
    assert {p.stem for p in (REPO / "configs" / "setting").glob("*.yaml")} == set(SETTINGS)


@pytest.mark.parametrize("budget", sorted(p.stem for p in (REPO / "configs/budget").glob("*.yaml")))
def test_every_budget_composes_at_one_size(budget, hydra_configs):
    table = table_of(hydra_configs, "controls", budget=budget)
    cells = plan(table, Path("x"), hydra_configs, StageStore(Path("x"))).chosen()
    by_row = {cell.row.name: cell for cell in cells}
    long, short = by_row["handmim_long"], by_row["handmim"]
    assert all(long.steps[k] > v for k, v in short.steps.items() if k != "pretrain")
    keys = {column.key for column in table.columns}
    assert {f"{name}/mpjpe_mm" for name in short.steps if name != "pretrain"} <= keys
    made = [
        hydra_configs(stage, list(words))
        for stage, words in (("pretrain", short.row.pretrain), ("finetune", short.row.finetune))
    ]
    assert len({(cfg.task.backbone.arch, cfg.task.backbone.img_px) for cfg in made}) == 1
    precision = "bf16-mixed" if budget == "gpu" else "32-true"
    assert [cfg.machine.precision for cfg in made] == [precision] * 2


def test_precision_that_is_said_for_all_wins_over_the_budget(hydra_configs):
    words = ["table=controls", "name=t", "budget=gpu", "machine.precision=16-mixed"]
    row = read_table(hydra_configs("ablate", words)).rows[0]
    assert hydra_configs("finetune", list(row.finetune)).machine.precision == "16-mixed"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer.stop_patience=5", r"stop_patience=5.*every cell its whole length.*null"),
        ("trainer.keep_best=pa_mpvpe_mm", r"validation figure such as .*'pa_mpvpe_mm'"),
    ],
)
def test_what_would_end_a_fine_tune_of_a_table_is_refused_before_anything_runs(
    word, said, hydra_configs
):
    words = ["table=controls", "name=t", f"finetune=['{word}']"]
    table = read_table(hydra_configs("ablate", words))
    with pytest.raises(ValueError, match=rf"row \w+ .*finetune: .*{said}"):
        plan(table, Path("x"), hydra_configs, StageStore(Path("x")))


def test_photos_may_lie_in_any_folder(hydra_configs):
    table = table_of(hydra_configs, "controls", "photos")
    (cell, *_) = plan(table, Path("x"), hydra_configs, StageStore(Path("x"))).chosen()
    assert cell.steps == {"finetune_50": 3, "finetune_100": 3}
    cfg = hydra_configs("finetune", list(cell.row.finetune))
    assert cfg.data.root == "a b"
    assert cfg.data.annotations == "c=d.json"
    assert hydra_configs("pretrain", list(cell.row.pretrain)).probe.root == "a b"


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_every_row_builds_its_task(name, hydra_configs):
    table = table_of(hydra_configs, name)
    plan(table, Path("x"), hydra_configs, StageStore(Path("x")))
    for row in table.rows:
        cfg = hydra_configs("pretrain", list(row.pretrain))
        drop_unbuilt(cfg.task.losses)
        drop_unbuilt(cfg.task.heads)
        task = instantiate(cfg.task)
        assert set(task.losses.terms) == set(cfg.task.losses), row.name
        instantiate(cfg.views)
