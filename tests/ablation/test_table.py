import pytest

from handmim.ablation.overrides import decisive, digest, joined
from handmim.ablation.table import fraction_name, read_table
from tests.ablation.conftest import ablate_config, small


def test_the_last_word_on_a_key_counts_and_keeps_its_place():
    words = joined(["a=1", "loss=[x]"], ["+a=2", "b=3"], ["~b"])
    assert words == ("loss=[x]", "+a=2", "~b")


def test_what_decides_a_result_leaves_out_names_places_and_cadence():
    one, two = small(3), small(3)
    one.name, one.paths = "a", {"run_root": "here"}
    two.name, two.paths = "b", {"run_root": "there"}
    two.trainer.log_every = 7
    assert digest(decisive(one)) == digest(decisive(two))
    two.machine.precision = "bf16-mixed"
    assert digest(decisive(one)) != digest(decisive(two))
    assert digest(decisive(one)) != digest(decisive(small(4)))


def test_rows_join_setting_budget_table_and_their_own_words():
    change = {"table": {"pretrain": ["trainer.max_steps=20"], "finetune": ["lr=2"]}}
    table = read_table(ablate_config(**change))
    random, patch = table.rows
    assert not random.is_pretrained
    assert patch.is_pretrained
    assert patch.label == "patch"
    assert {"data=a", "probe=a", "trainer.max_steps=20", "loss=[patch]"} <= set(patch.pretrain)
    assert "trainer.max_steps=10" not in patch.pretrain
    assert {"data=a", "lr=2", "wd=1"} <= set(patch.finetune)
    assert table.seeds == (0, 1)
    assert table.fractions == (0.05, 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": ["patch", "nope"]}, r"no rows \['nope'\].*\['random', 'patch'\]"),
        ({"rows": []}, r"rows=\[\].*\['random', 'patch'\]"),
        ({"rows": "nope"}, r"no rows \['nope'\]"),
        ({"seeds": 0}, "seeds must be"),
        ({"seeds": []}, "seeds must be"),
        ({"seeds": [1, 1]}, "seeds must be"),
        ({"table": {"rows": {"patch": {"lable": "x"}}}}, "lable.*valid are"),
        ({"table": {"rows": {"Patch!": {"label": "x"}}}}, "row names"),
        ({"table": {"rows": {"patch": {"init_from": "f"}}}}, "is pretrained and has init_from"),
        ({"table": {"fractions": [0.0]}}, "label shares"),
        ({"columns": {"x": {"label": "x", "better": "more"}}}, "better must be one of"),
        ({"columns": {"x": {"decimals": 1}}}, r"needs a label.*columns\.x"),
        ({"columns": {"x_*": {"decimals": 1}}}, r"needs a label.*columns\.x_\*"),
        ({"columns": {"x": "mm"}}, "mapping or null, got 'mm'"),
        ({"table": {"extra": 1}}, "extra"),
    ],
)
def test_wrong_words_are_named_with_the_valid_ones(changes, said):
    with pytest.raises(ValueError, match=said):
        read_table(ablate_config(**changes))


def test_without_a_table_it_says_where_they_are_listed():
    cfg = ablate_config()
    del cfg.table
    with pytest.raises(ValueError, match=r"table=NAME.*--help"):
        read_table(cfg)


@pytest.mark.parametrize("rows", ["patch", ["patch"]])
def test_chosen_rows_and_seeds_leave_the_table_whole(rows):
    table = read_table(ablate_config(rows=rows, seeds=[7]))
    assert table.chosen == ("patch",)
    assert table.seeds == (7,)
    assert [row.name for row in table.rows] == ["random", "patch"]
    assert fraction_name(0.05) == "finetune_5"
    assert fraction_name(0.125) == "finetune_12.5"


def test_a_star_stands_for_each_share_of_the_labels():
    columns = {
        "finetune_*/mm": {"label": "* % labels", "decimals": 1},
        "finetune_*/pck": None,
        "finetune_100/mm": None,
        "finetune_5/pa": {"decimals": 3},
        "finetune_100/pa": None,
        "finetune_*/pa": {"label": "PA, *"},
    }
    table = read_table(ablate_config(columns=columns, table={"fractions": [0.05, 0.125, 1.0]}))
    found = {c.key: (c.label, c.decimals) for c in table.columns if c.key.endswith("/mm")}
    assert found["finetune_5/mm"] == ("5 % labels", 1)
    assert found["finetune_12.5/mm"] == ("12.5 % labels", 1)
    assert "finetune_100/mm" not in found
    found = {c.key: (c.label, c.decimals) for c in table.columns if c.key.endswith("/pa")}
    assert found == {"finetune_5/pa": ("PA, 5", 3), "finetune_12.5/pa": ("PA, 12.5", 2)}
    assert not any("*" in c.key or c.key.endswith("/pck") for c in table.columns)


def test_machine_settings_that_are_not_given_leave_an_experiment_its_own():
    change = {"machine": {"num_threads": None, "precision": "32-true"}}
    row = read_table(ablate_config(**change)).rows[0]
    assert "machine.precision=32-true" in row.pretrain
    assert not any("num_threads" in word for word in (*row.pretrain, *row.finetune))
    row = read_table(ablate_config(machine={"num_threads": 3})).rows[0]
    assert row.pretrain[-2] == row.finetune[-2] == "machine.num_threads=3"
