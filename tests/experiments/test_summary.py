"""Means over fewer values than seeds, and how they are shown."""

from handmim.experiments.results import Row, as_markdown, best_rows
from handmim.experiments.table import Column, read_table
from tests.experiments.conftest import table_config

MM = Column("mm", "MPJPE mm")


def row(name, values, num_seeds=2):
    states = dict.fromkeys(range(num_seeds), "finished")
    return Row(name, name, {"mm": dict(enumerate(values))}, states, {})


def test_an_entry_gives_the_number_of_seeds_where_not_all_have_it():
    assert row("a", [16.0]).text(MM) == "16.00 (1)"
    assert row("a", [16.0, 18.0], 3).text(MM) == "17.00 ± 1.41 (2)"
    assert row("a", [16.0, 18.0]).text(MM) == "17.00 ± 1.41"
    assert row("a", [16.0], 1).text(MM) == "16.00"
    assert row("a", []).text(MM) == "-"


def test_only_rows_with_the_most_values_compete():
    rows = [row("a", [9.0], 1), row("b", [10.0, 11.0]), row("c", [12.0, 13.0])]
    assert best_rows(rows, MM) == {"b"}
    assert best_rows(rows[:2], MM) == set()
    assert best_rows([row("a", [9.0], 1), row("b", [10.0], 1)], MM) == {"a"}


def test_brackets_are_explained_where_there_are_some():
    table = read_table(table_config(columns={"mm": {"label": "MPJPE mm"}}))
    columns = {c.key: {} for c in table.columns}

    def text(values):
        entries = columns | {"mm": dict(enumerate(values))}
        states = {0: "finished", 1: "finished"}
        return as_markdown(table, [Row("a", "a", entries, states, {})], [])

    assert "counts the seeds that have the metric" in text([16.0])
    assert "brackets" not in text([16.0, 17.0])
