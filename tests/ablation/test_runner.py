"""A table with cells that cost nothing: kills, failures, other definitions."""

import csv
import json
import math
import shutil
from contextlib import suppress

import cv2
import pytest

from handmim.ablation.cell import run_cell
from handmim.ablation.collect import collect
from handmim.ablation.files import content_sha
from handmim.ablation.plan import plan as make_plan
from handmim.ablation.publish import FILES
from handmim.ablation.runner import dry_run_lines, failure_lines, run_table
from handmim.ablation.store import StageStore
from handmim.ablation.table import read_table
from tests.ablation import conftest
from tests.ablation.conftest import FakeRuns, ablate_config, fake_compose, planned


def launcher(runs, overwrite=False):
    """Cells in this process; a failing one does not stop the others."""

    def launch(cells, finished):
        for cell in cells:
            with suppress(FloatingPointError):
                run_cell(cell, runs, overwrite)
            finished(cell)

    return launch


def test_a_table_of_means_and_spreads(tmp_path):
    plan = planned(tmp_path)
    assert run_table(plan, launcher(FakeRuns())) == []
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
    plan = planned(tmp_path / "whole")
    run_table(plan, launcher(FakeRuns()))
    folder = tmp_path / "halves"
    plan = planned(folder)
    first, second = FakeRuns(dies_after=2), FakeRuns()
    with pytest.raises(KeyboardInterrupt):
        run_table(plan, launcher(first))
    assert "| 1 of 2 |" in (folder / "table.md").read_text()
    run_table(plan, launcher(second))
    assert sorted(first.ran + second.ran) == sorted(cell.name for cell in plan.chosen())
    for file in FILES[:2]:
        assert (folder / file).read_text() == (tmp_path / "whole" / file).read_text()


def test_a_failed_cell_is_named_and_the_others_go_on(tmp_path):
    plan = planned(tmp_path)
    failed = run_table(plan, launcher(FakeRuns(broken=("patch/0",))))
    assert [cell.name for cell in failed] == ["patch/0"]
    (line,) = failure_lines(failed)
    assert "not finite at step 7" in line
    assert str(tmp_path / "patch" / "seed_0" / "error.txt") in line
    text = (tmp_path / "table.md").read_text()
    assert "| patch | 1 of 2 (1 failed) | 11.00 |" in text
    # the next start tries it again, and only it
    runs = FakeRuns()
    assert run_table(plan, launcher(runs)) == []
    assert runs.ran == ["patch/0"]
    assert not (tmp_path / "patch" / "seed_0" / "error.txt").exists()


def test_finished_cells_of_another_definition_are_refused_until_told(tmp_path):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeRuns()))
    change = {"table": {"rows": {"patch": {"pretrain": ["loss=[patch,pixel]"]}}}}
    plan = planned(tmp_path, **change)
    with pytest.raises(ValueError, match=r"\+loss=\[patch,pixel\]") as caught:
        run_table(plan, launcher(FakeRuns()))
    assert "overwrite=true" in str(caught.value)
    assert "2 finished cells" in str(caught.value)
    assert "2 stale" in (tmp_path / "table.md").read_text()
    runs = FakeRuns()
    assert run_table(plan, launcher(runs, True), overwrite=True) == []
    assert runs.ran == ["patch/0", "patch/1"]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"finetune": ["wd=1", "same=1"]}, "finished"),
        ({"finetune": ["wd=1", "lr=2"]}, "stale"),
        ({"table": {"fractions": [0.05]}}, "stale"),
        ({"table": {"rows": {"random": {"init_from": "x.safetensors"}}}}, "stale"),
    ],
)
def test_words_that_compose_to_the_same_configs_are_the_same_experiment(tmp_path, change, state):
    run_table(planned(tmp_path), launcher(FakeRuns()))
    assert planned(tmp_path, **change).chosen()[0].state == state


def test_the_usual_precision_said_or_not_is_the_same_under_other_defaults_too(
    tmp_path, monkeypatch
):
    run_table(planned(tmp_path, machine={"precision": "32-true"}), launcher(FakeRuns()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    cells = planned(tmp_path).chosen()
    assert {cell.state for cell in cells} == {"finished"}
    assert any(cell.is_outdated for cell in cells)
    changed = planned(tmp_path, machine={"precision": "bf16-mixed"}).chosen()
    assert {cell.state for cell in changed} == {"stale"}


def test_where_and_on_what_a_cell_is_run_is_not_another_experiment(tmp_path):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeRuns()))
    plan = planned(
        tmp_path, machine={"num_threads": 8}, paths={"data_dir": "/elsewhere", "run_root": "x"}
    )
    assert {cell.state for cell in plan.chosen()} == {"finished"}


def test_other_words_for_a_row_are_not_another_experiment(tmp_path):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeRuns()))
    change = {"table": {"rows": {"patch": {"label": "patch distillation"}}}}
    plan = planned(tmp_path, **change)
    runs = FakeRuns()
    run_table(plan, launcher(runs))
    assert runs.ran == []
    assert "| patch distillation |" in (tmp_path / "table.md").read_text()


def test_cells_made_under_other_defaults_stay_and_are_counted(tmp_path, monkeypatch):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeRuns()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    plan = planned(tmp_path)
    runs = FakeRuns()
    run_table(plan, launcher(runs))
    assert runs.ran == []  # of rows without pretraining nothing has changed
    assert "again): patch (seeds 0, 1)." in (tmp_path / "table.md").read_text()
    run_table(plan, launcher(runs, True), overwrite=True)
    assert runs.ran == ["patch/0", "patch/1"]
    assert "other defaults" not in (tmp_path / "table.md").read_text()


def test_a_row_that_does_not_compose_is_named_before_anything_runs(tmp_path):
    change = {"table": {"rows": {"patch": {"pretrain": ["bad=1"]}}}}
    with pytest.raises(ValueError, match=r"row patch does not compose for pretrain.*'bad'"):
        planned(tmp_path, **change)


def test_dry_run_counts_steps_of_what_is_left(tmp_path):
    cells = planned(tmp_path).chosen()
    run_cell(cells[0], FakeRuns())
    lines = dry_run_lines(cells)
    assert "random/0" in lines[0]
    assert "finished" in lines[0]
    assert "pretrain 10, finetune_5 5, finetune_100 5" in lines[1]
    assert "3 of 4 cells to run, 50 steps" in lines[-1]


def test_copies_are_named_after_the_table(tmp_path):
    plan = planned(tmp_path / "runs")
    run_table(plan, launcher(FakeRuns()), out=tmp_path / "docs")
    names = sorted(p.name for p in (tmp_path / "docs").iterdir())
    assert names == [f"objectives-test.{end}" for end in ("csv", "json", "md", "png")]


def test_figures_that_are_no_numbers_are_missing_and_counted(tmp_path):
    plan = planned(tmp_path)
    runs = FakeRuns(figures={"patch/1": {"cls/mpjpe_mm": math.nan}})
    assert run_table(plan, launcher(runs)) == []
    text = (tmp_path / "table.md").read_text()
    assert "| patch | 2 | 10.00 (1) |" in text
    assert "| random init | 2 | 15.50 ± 0.71 |" in text
    for file in (tmp_path / "cells.json", tmp_path / "patch" / "seed_1" / "cell.json"):
        assert "NaN" not in file.read_text()
    assert run_table(plan, launcher(runs)) == []
    assert len(runs.ran) == 4


def test_a_cell_is_finished_while_its_stages_are(tmp_path):
    plan, runs = planned(tmp_path), FakeRuns()
    run_table(plan, launcher(runs))
    shutil.rmtree(plan.store.root / "probe-patch-0")
    assert [cell.state for cell in plan.chosen()] == ["finished", "open", "finished", "finished"]
    run_table(plan, launcher(runs))
    assert runs.ran[4:] == ["patch/0"]
    shutil.rmtree(plan.store.root)
    assert "4 of 4 cells to run" in dry_run_lines(plan.chosen())[-1]


def test_a_cell_whose_stage_was_made_anew_elsewhere_is_collected_again(tmp_path):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeRuns()))
    again = FakeRuns(figures={"patch/0": {"cls/mpjpe_mm": 7.0}})
    again.run(plan.chosen()[1])  # as another table would
    assert [cell.state for cell in plan.chosen()][1] == "open"
    run_table(plan, launcher(again))
    assert "| patch | 2 | **9.00" in (tmp_path / "table.md").read_text()


def test_a_cell_is_open_again_when_a_file_behind_its_stages_changes(tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text("one")
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeRuns(inputs={str(labels): content_sha(labels)})))
    assert {cell.state for cell in plan.chosen()} == {"finished"}
    labels.write_text("others")
    assert {cell.state for cell in plan.chosen()} == {"open"}


def test_a_dry_run_says_what_overwriting_would_run(tmp_path, monkeypatch):
    run_table(planned(tmp_path), launcher(FakeRuns()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    cells = planned(tmp_path).chosen()
    assert "0 of 4 cells to run" in dry_run_lines(cells)[-1]
    assert "outdated" in dry_run_lines(cells)[1]
    assert "2 of 4 cells to run, 42 steps" in dry_run_lines(cells, overwrite=True)[-1]
    change = {"table": {"rows": {"patch": {"pretrain": ["loss=[patch,pixel]"]}}}}
    cells = planned(tmp_path, **change).chosen()
    assert "nothing would run" in dry_run_lines(cells)[-2]
    assert "overwrite=true" in dry_run_lines(cells)[-1]
    assert "2 of 4 cells to run" in dry_run_lines(cells, overwrite=True)[-1]


def test_a_cell_that_dies_while_it_is_made_again_has_failed(tmp_path, monkeypatch):
    run_table(planned(tmp_path), launcher(FakeRuns()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    failed = run_table(planned(tmp_path), lambda cells, finished: None, overwrite=True)
    assert [cell.name for cell in failed] == ["patch/0", "patch/1"]


def test_chosen_rows_and_seeds_are_run_and_the_whole_table_is_shown(tmp_path):
    run_table(planned(tmp_path, seeds=3), launcher(FakeRuns()))
    plan, runs = planned(tmp_path, rows="patch", seeds=[7]), FakeRuns()
    run_table(plan, launcher(runs), out=tmp_path / "docs")
    assert runs.ran == ["patch/7"]
    text = (tmp_path / "docs" / "objectives-test.md").read_text()
    assert "| random init | 3 | 16.00 ± 1.00 |" in text
    assert "| patch | 4 | 12.50 ± 3.11 |" in text  # 10, 11, 12, 17
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert [(c["row"], c["seed"]) for c in cells[-3:]] == [
        ("random", 2),
        ("patch", 2),
        ("patch", 7),
    ]


def test_of_what_is_not_chosen_only_finished_cells_are_shown(tmp_path):
    run_table(planned(tmp_path, rows=["random"]), launcher(FakeRuns(broken=("random/1",))))
    plan = planned(tmp_path, rows=["patch"], seeds=1)
    collect(plan)
    text = (tmp_path / "table.md").read_text()
    assert "| random init | 1 |" in text
    assert "| patch | 0 of 1 |" in text
    collect(planned(tmp_path, rows=["random"]))
    assert "| patch |" not in (tmp_path / "table.md").read_text()


def test_the_task_behind_the_probe_of_a_row_without_pretraining_counts(tmp_path):
    def compose(name, words, temp=1.0, lr=1.0):
        cfg = fake_compose(name, words)
        cfg.task, cfg.optim, cfg.probe = {"temp": temp}, {"lr": lr}, {"every": 1}
        del cfg.words
        return cfg

    table = read_table(ablate_config(rows="random", seeds=1))

    def sha(**change):
        def composed(name, words):
            return compose(name, words, **(change if name == "pretrain" else {}))

        (cell,) = make_plan(table, tmp_path, composed, StageStore(tmp_path)).chosen()
        return cell.config_sha

    assert sha(temp=2.0) != sha()
    assert sha(lr=2.0) == sha()


def test_all_commits_of_a_cells_stages_are_named(tmp_path):
    shas = [{"git_sha": sha * 12, "git_dirty": sha == "b"} for sha in "ab"]
    run_table(planned(tmp_path), launcher(FakeRuns(commits=shas)))
    assert "code aaaaaaaaaa, bbbbbbbbbb+ (+ =" in (tmp_path / "table.md").read_text()
