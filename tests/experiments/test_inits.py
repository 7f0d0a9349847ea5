"""Variants from initial weights: random, methods, public names, files."""

from dataclasses import replace
from pathlib import Path

import pytest

from handmim.experiments.runs import Plan, StageStore
from handmim.experiments.stages import Stages
from handmim.experiments.table import init_variants
from tests.experiments.test_stages import Definitions
from tests.experiments.test_tables import table_of

FRACTIONS = [0.01, 0.5, 1.0]


@pytest.fixture
def weights(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return [str(tmp_path / name) for name in names]

    return make


def test_inits_are_random_methods_public_names_or_files(weights):
    (file,) = weights("runs/My ViT-2.safetensors")
    inits = ["random", "handmim-plain", "timm:vit_small.dino", file]
    assert init_variants(inits, {"random": "none"}) == {
        "random": {"label": "none", "pretrain": None},
        "handmim_plain": {"label": "handmim-plain", "pretrain": {"method": "handmim-plain"}},
        "vit_small_dino": {
            "label": "vit_small.dino",
            "pretrain": {"train": False, "init": "timm:vit_small.dino"},
        },
        "my_vit_2": {"label": "My ViT-2", "pretrain": None, "init_from": file},
    }
    assert list(init_variants("mae", {})) == ["mae"]


def test_files_of_one_name_are_named_by_their_folders_too(weights):
    files = weights("one/backbone.safetensors", "two/backbone.safetensors", "mae.pt")
    variants = init_variants(["mae", *files], {})
    assert list(variants)[1:3] == ["one_backbone", "two_backbone"]
    assert variants["one_backbone"]["label"] == "one/backbone"
    assert variants["mae"]["pretrain"] == {"method": "mae"}
    assert [variant.get("init_from") for variant in variants.values()] == [None, *files]


def test_inits_that_cannot_be_are_named(weights):
    twice = weights("a/x/w.pt", "b/x/w.pt")
    with pytest.raises(ValueError, match=r"variant 'x_w'.*rename a file or its folder"):
        init_variants(twice, {})
    for given in ([], ["mae", "mae"]):
        with pytest.raises(ValueError, match=r"distinct, one at least"):
            init_variants(given, {})
    with pytest.raises(FileNotFoundError, match=r"no weights at /.*nope\.pt \(inits"):
        init_variants(["nope.pt"], {})


def label_table(compose, *inits):
    return table_of(compose, "label_efficiency", inits=list(inits), fractions=FRACTIONS)


def test_a_table_of_inits_has_their_variants_and_shares(hydra_configs):
    table = label_table(hydra_configs, "handmim", "random")
    assert [variant.label for variant in table.variants] == ["HandMIM", "random init"]
    assert table.baseline == "random"
    assert table.fractions == tuple(FRACTIONS)
    (run, *_) = Plan(table, Path("x"), hydra_configs, StageStore(Path("x"))).chosen()
    steps = run.definition.steps
    assert steps == {"pretrain": 4, **dict.fromkeys(steps.keys() - {"pretrain"}, 3)}
    assert {"finetune_1", "finetune_50", "finetune_100"} < set(steps)
    keys = {c.key for c in table.columns}
    assert "finetune_1/pa_mpvpe_mm" in keys
    assert not any(key.startswith("probe/") for key in keys)
    assert label_table(hydra_configs, "mae").baseline is None


def test_weights_used_as_they_are_take_no_steps_of_pretraining(hydra_configs):
    table = label_table(hydra_configs, "timm:vit_tiny")
    (run, *_) = Plan(table, Path("x"), hydra_configs, StageStore(Path("x"))).chosen()
    assert set(run.definition.steps) == {"finetune_1", "finetune_50", "finetune_100"}


def test_stages_of_other_tables_are_the_same_stages(tmp_path, hydra_configs):
    def stages(table, name):
        variants = tuple(v for v in table.variants if v.name == name)
        alone = replace(table, variants=variants, chosen=(name,), seeds=(0,))
        store = Definitions(tmp_path)
        (run,) = Plan(alone, tmp_path, hydra_configs, store).chosen()
        Stages(hydra_configs, store).run(run)
        return store.definitions

    own = label_table(hydra_configs, "handmim-plain")
    theirs = table_of(hydra_configs, "rivals")
    # of the fine-tunings the last is noted: all labels in both
    assert stages(own, "handmim_plain") == stages(theirs, "handmim_plain")
