from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from handmim.experiments.table import (
    arguments,
    as_overrides,
    deciding_items,
    decisive,
    digest,
    fraction_name,
    merged,
    read_table,
    value_text,
)
from tests.experiments.conftest import small, table_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_last_value_of_a_key_counts():
    overrides = merged({"a": 1, "loss": ["x"]}, {"+a": 2, "b": 3}, {"~b": None})
    assert arguments(overrides) == ["loss=[x]", "+a=2", "~b"]


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 0.1, 1e-05, "own", "null", "True", "12", "", "a b", "/a/b", "timm:vit",
        "c=d", "it's", "C:\\photos\\", "\\'", "~/x", ["a", "b c", 0.5], {"a": 1, "b": ["x,y"]},
        ["[", "{}"],
    ],
)  # fmt: skip
def test_hydra_reads_a_written_value_as_it_was(value):
    (override,) = OverridesParser.create().parse_overrides([f"key={value_text(value)}"])
    assert override.value() == value
    assert type(override.value()) is type(value)


def test_a_list_of_a_command_line_is_read_as_a_mapping():
    given = as_overrides(["a.b=[1,x]", "+c='d e'", "~f"])
    assert given == {"a.b": [1, "x"], "+c": "d e", "~f": None}
    assert as_overrides(None) == {}
    with pytest.raises(HydraException):
        as_overrides(["a=[1"])


def test_names_paths_and_cadence_decide_no_result():
    one, two = small(3), small(3)
    one.name, one.paths = "a", {"run_root": "here"}
    two.name, two.paths = "b", {"run_root": "there"}
    two.trainer.log_every = 7
    assert digest(decisive(one)) == digest(decisive(two))
    two.machine.precision = "bf16-mixed"
    assert digest(decisive(one)) != digest(decisive(two))
    assert digest(decisive(one)) != digest(decisive(small(4)))


def test_variants_merge_dataset_budget_table_and_their_own_overrides():
    change = {"table": {"pretrain": {"trainer.max_steps": 20}, "finetune": {"lr": 2}}}
    table = read_table(table_config(**change))
    random, patch = table.variants
    assert not random.is_pretrained
    assert patch.is_pretrained
    assert patch.label == "patch"
    expected = {"data": "a", "probe": "a", "trainer.max_steps": 20, "loss": ["patch"]}
    assert expected.items() <= patch.pretrain.items()
    assert {"data": "a", "lr": 2, "wd": 1}.items() <= patch.finetune.items()
    assert table.seeds == (0, 1)
    assert table.fractions == (0.05, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["patch", "nope"]}, r"no variants \['nope'\].*\['random', 'patch'\]"),
        ({"variants": []}, r"no variant is chosen.*\['random', 'patch'\]"),
        ({"variants": "nope"}, r"no variants \['nope'\]"),
        ({"seeds": 0}, "seeds must be"),
        ({"seeds": []}, "seeds must be"),
        ({"seeds": [1, 1]}, "seeds must be"),
        ({"table": {"variants": {"patch": {"lable": "x"}}}}, "lable.*valid are"),
        ({"table": {"variants": {"Patch!": {"label": "x"}}}}, "names of variants"),
        ({"table": {"variants": {"patch": {"init_from": "f"}}}}, "is pretrained and has init_from"),
        ({"table": {"fractions": [0.0]}}, "fractions of labels"),
        ({"fractions": [0.5, 0.5]}, "fractions of labels"),
        ({"fractions": 0.5}, "fractions of labels"),
        ({"budget": "much"}, r"budget must be one of \('few',\), got 'much'"),
        ({"inits": ["random"]}, r"table=label_efficiency.*has \['random', 'patch'\]"),
        ({"columns": {"x": {"label": "x", "better": "more"}}}, "better must be one of"),
        ({"columns": {"x": {"decimals": 1}}}, r"columns\.x must be a mapping with a label"),
        ({"columns": {"x_*": {"decimals": 1}}}, r"columns\.x_\* must be a mapping with a label"),
        ({"columns": {"x": "mm"}}, "mapping with a label or null, got mm"),
        ({"table": {"extra": 1}}, "extra"),
        ({"table": {"baseline": "nope"}}, r"no variants \['nope'\].*patch'\] \(baseline\)"),
    ],
)
def test_wrong_values_are_named_with_the_valid_ones(changes, message):
    with pytest.raises(ValueError, match=message):
        read_table(table_config(**changes))


def test_without_a_table_the_error_names_where_they_are_listed():
    cfg = table_config()
    del cfg.table
    with pytest.raises(ValueError, match=r"table=NAME.*--help"):
        read_table(cfg)


@pytest.mark.parametrize("variants", ["patch", ["patch"]])
def test_chosen_variants_and_seeds_leave_the_table_whole(variants):
    table = read_table(table_config(variants=variants, seeds=[7]))
    assert table.chosen == ("patch",)
    assert table.seeds == (7,)
    assert [variant.name for variant in table.variants] == ["random", "patch"]
    assert fraction_name(0.05) == "finetune_5"
    assert fraction_name(0.125) == "finetune_12.5"


def test_a_star_stands_for_each_share_of_the_labels():
    columns = {
        "finetune_*/mm": {"label": "* % labels", "decimals": 1},
        "finetune_*/pck": None,
    }
    table = read_table(table_config(columns=columns, table={"fractions": [0.05, 0.125, 1.0]}))
    found = {c.key: (c.label, c.decimals) for c in table.columns if c.key.endswith("/mm")}
    assert found["finetune_5/mm"] == ("5 % labels", 1)
    assert found["finetune_12.5/mm"] == ("12.5 % labels", 1)
    assert found["finetune_100/mm"] == ("100 % labels", 1)
    assert not any("*" in c.key or c.key.endswith("/pck") for c in table.columns)


def test_columns_keep_their_order():
    columns = {"a": {"label": "a"}, "f_*": {"label": "*"}, "z": {"label": "z"}}
    cfg = table_config(table={"fractions": [0.5, 1.0]})
    cfg.columns = columns
    assert [c.key for c in read_table(cfg).columns] == ["a", "f_50", "f_100", "z"]


def test_machine_settings_that_are_not_given_leave_an_experiment_its_own():
    change = {"machine": {"num_threads": None, "precision": "32-true"}}
    variant = read_table(table_config(**change)).variants[0]
    assert variant.pretrain["machine.precision"] == "32-true"
    assert "machine.num_threads" not in variant.pretrain | variant.finetune
    variant = read_table(table_config(machine={"num_threads": 3})).variants[0]
    assert variant.pretrain["machine.num_threads"] == variant.finetune["machine.num_threads"] == 3


@pytest.mark.parametrize(
    ("stage", "before", "table", "variant"),
    [
        ("finetune", {"head": "iterative_small"}, "heads", "iterative"),
        ("finetune", {"head": "decoder_small"}, "heads", "decoder"),
        ("finetune", {"head": "plain_small"}, "heads", "plain"),
        ("pretrain", {"views": "curriculum"}, "masking", "curriculum"),
        ("pretrain", {"views": "asymmetric"}, "masking", "asymmetric"),
    ],
)
def test_runs_made_with_options_of_before_are_those_of_today(stage, before, table, variant):
    written = OmegaConf.load(CONFIGS / "table" / f"{table}.yaml").variants[variant]
    today = OmegaConf.to_container(written)[stage]
    pair = ({"pretrain": {}, "finetune": {}, stage: each} for each in (before, today))
    assert len({frozenset(deciding_items(each, is_composed=False)) for each in pair}) == 1
