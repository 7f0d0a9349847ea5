"""A table with cells that cost nothing: kills, failures, other definitions."""

import csv
import json
import math
from contextlib import suppress

import cv2
import pytest

from handmim.ablation.cell import run_cell
from handmim.ablation.collect import FILES, without_places
from handmim.ablation.runner import dry_run_lines, failure_lines, run_table
from tests.ablation import conftest
from tests.ablation.conftest import FakeRuns, planned


def launcher(runs, overwrite=False):
    """Cells in this process; a failing one does not stop the others."""

    def launch(cells, finished):
        for cell in cells:
            with suppress(FloatingPointError):
                run_cell(cell, runs, overwrite)
            finished(cell)

    return launch


def test_a_table_of_means_and_spreads(tmp_path):
    table, cells = planned(tmp_path)
    assert run_table(table, cells, tmp_path, launcher(FakeRuns())) == []
    text = (tmp_path / "table.md").read_text()
    # random: 15 and 16, patch: 10 and 11; the sample deviation of two neighbours is 1 / sqrt 2.
    assert "| random init | 2 | 15.50 ± 0.71 |" in text
    assert "| patch | 2 | **10.50 ± 0.71** |" in text
    assert "never made" not in text
    assert "0123456789" in text
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["random", "patch"]
    assert float(rows[1]["probe/cls/mpjpe_mm:sd"]) == pytest.approx(math.sqrt(0.5), rel=1e-5)
    assert rows[1]["probe/cls/mpjpe_mm:values"] == "10 11"
    everything = json.loads((tmp_path / "cells.json").read_text())
    assert [c["seed"] for c in everything] == [0, 0, 1, 1]
    assert everything[0]["figures"]["cpu_seconds/total"] == 3.0
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 10


def test_killed_in_the_middle_and_started_again_it_is_the_same_table(tmp_path):
    table, cells = planned(tmp_path / "whole")
    run_table(table, cells, tmp_path / "whole", launcher(FakeRuns()))
    folder = tmp_path / "halves"
    table, cells = planned(folder)
    first, second = FakeRuns(dies_after=2), FakeRuns()
    with pytest.raises(KeyboardInterrupt):
        run_table(table, cells, folder, launcher(first))
    assert "| 1 of 2 |" in (folder / "table.md").read_text()
    run_table(table, cells, folder, launcher(second))
    assert sorted(first.ran + second.ran) == sorted(cell.name for cell in cells)
    for file in FILES[:2]:
        assert (folder / file).read_text() == (tmp_path / "whole" / file).read_text()


def test_a_failed_cell_is_named_and_the_others_go_on(tmp_path):
    table, cells = planned(tmp_path)
    failed = run_table(table, cells, tmp_path, launcher(FakeRuns(broken=("patch/0",))))
    assert [cell.name for cell in failed] == ["patch/0"]
    (line,) = failure_lines(failed)
    assert "not finite at step 7" in line
    assert str(tmp_path / "patch" / "seed_0" / "error.txt") in line
    text = (tmp_path / "table.md").read_text()
    assert "| patch | 1 of 2 (1 failed) | **11.00** |" in text
    # the next start tries it again, and only it
    runs = FakeRuns()
    assert run_table(table, cells, tmp_path, launcher(runs)) == []
    assert runs.ran == ["patch/0"]
    assert not (tmp_path / "patch" / "seed_0" / "error.txt").exists()


def test_finished_cells_of_another_definition_are_refused_until_told(tmp_path):
    table, cells = planned(tmp_path)
    run_table(table, cells, tmp_path, launcher(FakeRuns()))
    change = {"table": {"rows": {"patch": {"pretrain": ["loss=[patch,pixel]"]}}}}
    table, cells = planned(tmp_path, **change)
    with pytest.raises(ValueError, match=r"\+loss=\[patch,pixel\]") as caught:
        run_table(table, cells, tmp_path, launcher(FakeRuns()))
    assert "overwrite=true" in str(caught.value)
    assert "2 finished cells" in str(caught.value)
    assert "2 stale" in (tmp_path / "table.md").read_text()
    runs = FakeRuns()
    assert run_table(table, cells, tmp_path, launcher(runs, True), overwrite=True) == []
    assert runs.ran == ["patch/0", "patch/1"]


def test_where_and_on_what_a_cell_is_run_is_not_another_experiment(tmp_path):
    table, cells = planned(tmp_path)
    run_table(table, cells, tmp_path, launcher(FakeRuns()))
    table, cells = planned(
        tmp_path, machine={"num_threads": 8}, paths={"data_dir": "/elsewhere", "run_root": "x"}
    )
    assert {cell.state for cell in cells} == {"finished"}


def test_other_words_for_a_row_are_not_another_experiment(tmp_path):
    table, cells = planned(tmp_path)
    run_table(table, cells, tmp_path, launcher(FakeRuns()))
    change = {"table": {"rows": {"patch": {"label": "patch distillation"}}}}
    table, cells = planned(tmp_path, **change)
    runs = FakeRuns()
    run_table(table, cells, tmp_path, launcher(runs))
    assert runs.ran == []
    assert "| patch distillation |" in (tmp_path / "table.md").read_text()


def test_cells_made_under_other_defaults_stay_and_are_counted(tmp_path, monkeypatch):
    table, cells = planned(tmp_path)
    run_table(table, cells, tmp_path, launcher(FakeRuns()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    table, cells = planned(tmp_path)
    runs = FakeRuns()
    run_table(table, cells, tmp_path, launcher(runs))
    assert runs.ran == []  # of rows without pretraining nothing has changed
    assert "2 of them were made under other defaults" in (tmp_path / "table.md").read_text()
    run_table(table, cells, tmp_path, launcher(runs, True), overwrite=True)
    assert runs.ran == ["patch/0", "patch/1"]
    assert "other defaults" not in (tmp_path / "table.md").read_text()


def test_a_row_that_does_not_compose_is_named_before_anything_runs(tmp_path):
    change = {"table": {"rows": {"patch": {"pretrain": ["bad=1"]}}}}
    with pytest.raises(ValueError, match=r"row patch does not compose for pretrain.*'bad'"):
        planned(tmp_path, **change)


def test_dry_run_counts_steps_of_what_is_left(tmp_path):
    _, cells = planned(tmp_path)
    run_cell(cells[0], FakeRuns())
    lines = dry_run_lines(cells)
    assert "random/0" in lines[0]
    assert "finished" in lines[0]
    assert "pretrain 10, finetune_5 5, finetune_100 5" in lines[1]
    assert "3 of 4 cells to run, 50 steps" in lines[-1]


def test_copies_are_named_after_the_table(tmp_path):
    table, cells = planned(tmp_path / "runs")
    run_table(table, cells, tmp_path / "runs", launcher(FakeRuns()), out=tmp_path / "docs")
    names = sorted(p.name for p in (tmp_path / "docs").iterdir())
    assert names == [f"objectives-test.{end}" for end in ("csv", "json", "md", "png")]


def test_published_cells_name_no_places_of_this_machine():
    cell = {
        "overrides": ["data.root='/home/me/photos/images'", "probe.root=/data/x/y", "optim.lr=1/2"],
        "host": "box",
        "figures": {"probe/err2d_percent": 6.0},
    }
    text = without_places(json.dumps([cell], indent=1))
    assert json.loads(text) == [
        {
            "overrides": ["data.root='.../images'", "probe.root=.../y", "optim.lr=1/2"],
            "figures": {"probe/err2d_percent": 6.0},
        }
    ]
