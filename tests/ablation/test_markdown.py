"""Means over fewer figures than seeds, and what is said of them."""

from handmim.ablation.lines import Entry, Line, best_rows
from handmim.ablation.markdown import markdown, shown
from handmim.ablation.table import Column, read_table
from tests.ablation.conftest import ablate_config

MM = Column("mm", "MPJPE mm")


def line(name, values, num_seeds=2):
    states = dict.fromkeys(range(num_seeds), "finished")
    return Line(name, name, {"mm": Entry(tuple(values))}, states)


def test_an_entry_says_how_many_seeds_have_it_where_not_all_do():
    assert shown(line("a", [16.0]), MM) == "16.00 (1)"
    assert shown(line("a", [16.0, 18.0], 3), MM) == "17.00 ± 1.41 (2)"
    assert shown(line("a", [16.0, 18.0]), MM) == "17.00 ± 1.41"
    assert shown(line("a", [16.0], 1), MM) == "16.00"
    assert shown(line("a", []), MM) == "-"


def test_only_rows_with_the_most_values_compete():
    lines = [line("a", [9.0], 1), line("b", [10.0, 11.0]), line("c", [12.0, 13.0])]
    assert best_rows(lines, MM) == {"b"}
    assert best_rows(lines[:2], MM) == set()
    assert best_rows([line("a", [9.0], 1), line("b", [10.0], 1)], MM) == {"a"}


def test_brackets_are_explained_where_there_are_some():
    table = read_table(ablate_config(columns={"mm": {"label": "MPJPE mm"}}))
    columns = {c.key: Entry(()) for c in table.columns}

    def text(values):
        entries = columns | {"mm": Entry(tuple(values))}
        return markdown(table, [Line("a", "a", entries, {0: "finished", 1: "finished"})], "facts")

    assert "counts the seeds that have the figure" in text([16.0])
    assert "brackets" not in text([16.0, 17.0])
