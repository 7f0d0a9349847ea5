"""Rows from starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from handmim.ablation.inits import init_rows
from handmim.ablation.plan import plan
from handmim.ablation.runner import asked_table
from handmim.ablation.stages import Stages
from handmim.ablation.store import StageStore
from tests.ablation.test_stages import Asked
from tests.ablation.test_tables import table_of


@pytest.fixture
def weights(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return [str(tmp_path / name) for name in names]

    return make


def test_starts_are_random_methods_public_names_or_files(weights):
    (file,) = weights("runs/My ViT-2.safetensors")
    rows = init_rows(["random", "handmim-plain", "timm:vit_small.dino", file], {"random": "none"})
    assert rows == {
        "random": {"label": "none", "pretrain": None},
        "handmim_plain": {"label": "handmim-plain", "pretrain": ["method=handmim-plain"]},
        "vit_small_dino": {
            "label": "vit_small.dino",
            "pretrain": ["method=supervised-init", "init='timm:vit_small.dino'"],
        },
        "my_vit_2": {"label": "My ViT-2", "pretrain": None, "init_from": file},
    }
    assert list(init_rows("mae", {})) == ["mae"]


def test_files_of_one_name_are_called_by_their_folders_too(weights):
    files = weights("one/backbone.safetensors", "two/backbone.safetensors", "mae.pt")
    rows = init_rows(["mae", *files], {})
    assert list(rows)[1:3] == ["one_backbone", "two_backbone"]
    assert rows["one_backbone"]["label"] == "one/backbone"
    assert rows["mae"]["pretrain"] == ["method=mae"]
    assert [row.get("init_from") for row in rows.values()] == [None, *files]


def test_starts_that_cannot_be_are_named(weights):
    twice = weights("a/x/w.pt", "b/x/w.pt")
    with pytest.raises(ValueError, match=r"row 'x_w'.*rename a file or its folder"):
        init_rows(twice, {})
    for asked in ([], ["mae", "mae"]):
        with pytest.raises(ValueError, match=r"distinct, one at least"):
            init_rows(asked, {})
    with pytest.raises(ValueError, match="timm:NAME or a file"):
        init_rows(["supervised-init"], {})
    with pytest.raises(FileNotFoundError, match=r"no weights at /.*nope\.pt \(inits"):
        init_rows(["nope.pt"], {})


def words(inits, *more):
    return [f"inits=[{inits}]", "fractions=[0.01,0.5,1.0]", "budget=smoke", "name=t", *more]


def test_a_table_of_starts_has_their_rows_and_shares(hydra_configs):
    cfg = hydra_configs("label_efficiency", words("handmim,random"))
    table = asked_table(cfg)
    assert [row.label for row in table.rows] == ["HandMIM", "random init"]
    assert table.baseline == "random"
    assert table.fractions == (0.01, 0.5, 1.0)
    assert "rows" not in cfg.table
    (cell, *_) = plan(table, Path("x"), hydra_configs, StageStore(Path("x"))).chosen()
    assert cell.steps == {"pretrain": 4, **dict.fromkeys(cell.steps.keys() - {"pretrain"}, 3)}
    assert {"finetune_1", "finetune_50", "finetune_100"} < set(cell.steps)
    keys = {c.key for c in table.columns}
    assert "finetune_1/pa_mpvpe_mm" in keys
    assert not any(key.startswith("probe/") for key in keys)
    assert asked_table(hydra_configs("label_efficiency", words("mae"))).baseline is None


def test_weights_as_they_are_take_no_steps_of_pretraining(hydra_configs):
    cfg = hydra_configs("label_efficiency", words("timm:vit_tiny"))
    (cell, *_) = plan(asked_table(cfg), Path("x"), hydra_configs, StageStore(Path("x"))).chosen()
    assert set(cell.steps) == {"finetune_1", "finetune_50", "finetune_100"}


def test_stages_of_other_tables_are_the_same_stages(tmp_path, hydra_configs):
    def stages(table, row):
        rows = tuple(r for r in table.rows if r.name == row)
        alone = replace(table, rows=rows, chosen=(row,), seeds=(0,))
        store = Asked(tmp_path)
        (cell,) = plan(alone, tmp_path, hydra_configs, store).chosen()
        Stages(hydra_configs, store).run(cell)
        return store.definitions

    mine = asked_table(hydra_configs("label_efficiency", words("handmim-plain")))
    theirs = table_of(hydra_configs, "rivals")
    # of the fine-tunes the last is noted: all labels in both
    assert stages(mine, "handmim_plain") == stages(theirs, "handmim_plain")
