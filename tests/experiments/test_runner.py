"""A table with runs that cost nothing: kills, failures, other definitions."""

import csv
import json
import math
import shutil
from contextlib import suppress

import cv2
import pytest

from handmim.experiments.results import write_results
from handmim.experiments.runner import dry_run_lines, failure_lines, run_table
from handmim.experiments.runs import Plan, StageStore, content_sha
from handmim.experiments.stages import make_run
from handmim.experiments.table import read_table
from tests.experiments import conftest
from tests.experiments.conftest import FakeStages, fake_compose, planned, table_config


def launcher(stages, overwrite=False):
    """Cells in this process; a failing one does not stop the others."""

    def launch(runs, finished):
        for run in runs:
            with suppress(FloatingPointError):
                make_run(run, stages.run, overwrite)
            finished(run)

    return launch


def test_a_table_of_means_and_spreads(tmp_path):
    plan = planned(tmp_path)
    assert run_table(plan, launcher(FakeStages())) == []
    text = (tmp_path / "table.md").read_text()
    # random: 15 and 16, patch: 10 and 11; the sample deviation of two neighbours is 1 / sqrt 2.
    assert "| random init | 2 | 15.50 ± 0.71 |" in text
    assert "| patch | 2 | **10.50 ± 0.71** |" in text
    assert "never made" not in text
    assert "0123456789" in text
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["random", "patch"]
    assert float(rows[1]["probe/cls/mpjpe_mm:sd"]) == pytest.approx(math.sqrt(0.5), rel=1e-5)
    assert rows[1]["probe/cls/mpjpe_mm:values"] == "10 11"
    everything = json.loads((tmp_path / "runs.json").read_text())
    assert [c["seed"] for c in everything] == [0, 0, 1, 1]
    assert everything[0]["metrics"]["cpu_seconds/total"] == 3.0
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 10


def test_killed_in_the_middle_and_started_again_it_is_the_same_table(tmp_path):
    plan = planned(tmp_path / "whole")
    run_table(plan, launcher(FakeStages()))
    folder = tmp_path / "halves"
    plan = planned(folder)
    first, second = FakeStages(dies_after=2), FakeStages()
    with pytest.raises(KeyboardInterrupt):
        run_table(plan, launcher(first))
    assert "| 1 of 2 |" in (folder / "table.md").read_text()
    run_table(plan, launcher(second))
    assert sorted(first.ran + second.ran) == sorted(run.name for run in plan.chosen())
    for file in ("table.md", "table.csv"):
        assert (folder / file).read_text() == (tmp_path / "whole" / file).read_text()


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path):
    plan = planned(tmp_path)
    failed = run_table(plan, launcher(FakeStages(broken=("patch/0",))))
    assert [run.name for run in failed] == ["patch/0"]
    (line,) = failure_lines(failed)
    assert "not finite at step 7" in line
    assert str(tmp_path / "patch" / "seed_0" / "error.txt") in line
    text = (tmp_path / "table.md").read_text()
    assert "| patch | 1 of 2 (1 failed) | 11.00 |" in text
    # the next start tries it again, and only it
    stages = FakeStages()
    assert run_table(plan, launcher(stages)) == []
    assert stages.ran == ["patch/0"]
    assert not (tmp_path / "patch" / "seed_0" / "error.txt").exists()


def test_finished_runs_of_another_definition_are_refused_without_overwrite(tmp_path):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeStages()))
    change = {"table": {"variants": {"patch": {"pretrain": {"loss": ["patch", "pixel"]}}}}}
    plan = planned(tmp_path, **change)
    with pytest.raises(ValueError, match=r"\+loss=\[patch,pixel\]") as caught:
        run_table(plan, launcher(FakeStages()))
    assert "overwrite=true" in str(caught.value)
    assert "2 finished runs" in str(caught.value)
    assert "2 stale" in (tmp_path / "table.md").read_text()
    stages = FakeStages()
    assert run_table(plan, launcher(stages, True), overwrite=True) == []
    assert stages.ran == ["patch/0", "patch/1"]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"finetune": {"same": 1}}, "finished"),
        ({"finetune": {"lr": 2}}, "stale"),
        ({"table": {"fractions": [0.05]}}, "stale"),
        ({"table": {"variants": {"random": {"init_from": "x.safetensors"}}}}, "stale"),
    ],
)
def test_overrides_that_compose_to_the_same_configs_are_the_same_run(tmp_path, change, state):
    run_table(planned(tmp_path), launcher(FakeStages()))
    assert planned(tmp_path, **change).chosen()[0].state == state


def test_the_usual_precision_given_or_not_is_the_same_under_other_defaults_too(
    tmp_path, monkeypatch
):
    run_table(planned(tmp_path, machine={"precision": "32-true"}), launcher(FakeStages()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    runs = planned(tmp_path).chosen()
    assert {run.state for run in runs} == {"finished"}
    assert any(run.is_outdated for run in runs)
    changed = planned(tmp_path, machine={"precision": "bf16-mixed"}).chosen()
    assert {run.state for run in changed} == {"stale"}


def test_where_and_on_what_a_run_is_made_is_not_another_experiment(tmp_path):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeStages()))
    plan = planned(
        tmp_path, machine={"num_threads": 8}, paths={"data_dir": "/elsewhere", "run_root": "x"}
    )
    assert {run.state for run in plan.chosen()} == {"finished"}


def test_another_label_for_a_variant_are_not_another_experiment(tmp_path):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeStages()))
    change = {"table": {"variants": {"patch": {"label": "patch distillation"}}}}
    plan = planned(tmp_path, **change)
    stages = FakeStages()
    run_table(plan, launcher(stages))
    assert stages.ran == []
    assert "| patch distillation |" in (tmp_path / "table.md").read_text()


def test_runs_made_under_other_defaults_stay_and_are_counted(tmp_path, monkeypatch):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeStages()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    plan = planned(tmp_path)
    stages = FakeStages()
    run_table(plan, launcher(stages))
    assert stages.ran == []  # of rows without pretraining nothing has changed
    assert "again): patch (seeds 0, 1)." in (tmp_path / "table.md").read_text()
    run_table(plan, launcher(stages, True), overwrite=True)
    assert stages.ran == ["patch/0", "patch/1"]
    assert "other defaults" not in (tmp_path / "table.md").read_text()


def test_a_variant_that_does_not_compose_is_named_before_anything_runs(tmp_path):
    change = {"table": {"variants": {"patch": {"pretrain": {"bad": 1}}}}}
    with pytest.raises(ValueError, match=r"variant patch does not compose for pretrain.*'bad'"):
        planned(tmp_path, **change)


def test_dry_run_counts_steps_of_what_is_left(tmp_path):
    runs = planned(tmp_path).chosen()
    make_run(runs[0], FakeStages().run)
    lines = dry_run_lines(runs)
    assert "random/0" in lines[0]
    assert "finished" in lines[0]
    assert "pretrain 10, finetune_5 5, finetune_100 5" in lines[1]
    assert "3 of 4 runs to make, 50 steps" in lines[-1]


def test_copies_are_named_after_the_table(tmp_path):
    plan = planned(tmp_path / "runs")
    run_table(plan, launcher(FakeStages()), out=tmp_path / "docs")
    names = sorted(p.name for p in (tmp_path / "docs").iterdir())
    assert names == ["objectives-test.csv", "objectives-test.png"]


def test_metrics_that_are_no_numbers_are_missing_and_counted(tmp_path):
    plan = planned(tmp_path)
    stages = FakeStages(metrics={"patch/1": {"cls/mpjpe_mm": math.nan}})
    assert run_table(plan, launcher(stages)) == []
    text = (tmp_path / "table.md").read_text()
    assert "| patch | 2 | 10.00 (1) |" in text
    assert "| random init | 2 | 15.50 ± 0.71 |" in text
    for file in (tmp_path / "runs.json", tmp_path / "patch" / "seed_1" / "result.json"):
        assert "NaN" not in file.read_text()
    assert run_table(plan, launcher(stages)) == []
    assert len(stages.ran) == 4


def test_a_run_is_finished_while_its_stages_are(tmp_path):
    plan, stages = planned(tmp_path), FakeStages()
    run_table(plan, launcher(stages))
    shutil.rmtree(plan.store.root / "probe-patch-0")
    assert [run.state for run in plan.chosen()] == ["finished", "open", "finished", "finished"]
    run_table(plan, launcher(stages))
    assert stages.ran[4:] == ["patch/0"]
    shutil.rmtree(plan.store.root)
    assert "4 of 4 runs to make" in dry_run_lines(plan.chosen())[-1]


def test_a_run_whose_stage_was_made_anew_elsewhere_is_collected_again(tmp_path):
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeStages()))
    again = FakeStages(metrics={"patch/0": {"cls/mpjpe_mm": 7.0}})
    again.run(plan.chosen()[1])  # as another table would
    assert [run.state for run in plan.chosen()][1] == "open"
    run_table(plan, launcher(again))
    assert "| patch | 2 | **9.00" in (tmp_path / "table.md").read_text()


def test_a_run_is_open_again_when_a_file_behind_its_stages_changes(tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text("one")
    plan = planned(tmp_path)
    run_table(plan, launcher(FakeStages(inputs={str(labels): content_sha(labels)})))
    assert {run.state for run in plan.chosen()} == {"finished"}
    labels.write_text("others")
    assert {run.state for run in plan.chosen()} == {"open"}


def test_a_dry_run_lists_what_overwriting_would_run(tmp_path, monkeypatch):
    run_table(planned(tmp_path), launcher(FakeStages()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    runs = planned(tmp_path).chosen()
    assert "0 of 4 runs to make" in dry_run_lines(runs)[-1]
    assert "outdated" in dry_run_lines(runs)[1]
    assert "2 of 4 runs to make, 42 steps" in dry_run_lines(runs, overwrite=True)[-1]
    change = {"table": {"variants": {"patch": {"pretrain": {"loss": ["patch", "pixel"]}}}}}
    runs = planned(tmp_path, **change).chosen()
    assert "nothing would run" in dry_run_lines(runs)[-2]
    assert "overwrite=true" in dry_run_lines(runs)[-1]
    assert "2 of 4 runs to make" in dry_run_lines(runs, overwrite=True)[-1]


def test_a_run_that_dies_while_it_is_made_again_has_failed(tmp_path, monkeypatch):
    run_table(planned(tmp_path), launcher(FakeStages()))
    monkeypatch.setattr(conftest, "PRETRAIN_STEPS", 11)
    failed = run_table(planned(tmp_path), lambda runs, finished: None, overwrite=True)
    assert [run.name for run in failed] == ["patch/0", "patch/1"]


def test_chosen_variants_and_seeds_are_run_and_the_whole_table_is_shown(tmp_path):
    run_table(planned(tmp_path, seeds=3), launcher(FakeStages()))
    plan, stages = planned(tmp_path, variants="patch", seeds=[7]), FakeStages()
    run_table(plan, launcher(stages))
    assert stages.ran == ["patch/7"]
    text = (tmp_path / "table.md").read_text()
    assert "| random init | 3 | 16.00 ± 1.00 |" in text
    assert "| patch | 4 | 12.50 ± 3.11 |" in text  # 10, 11, 12, 17
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [(c["variant"], c["seed"]) for c in runs[-3:]] == [
        ("random", 2),
        ("patch", 2),
        ("patch", 7),
    ]


def test_of_what_is_not_chosen_only_finished_runs_are_shown(tmp_path):
    run_table(planned(tmp_path, variants=["random"]), launcher(FakeStages(broken=("random/1",))))
    plan = planned(tmp_path, variants=["patch"], seeds=1)
    write_results(plan)
    text = (tmp_path / "table.md").read_text()
    assert "| random init | 1 |" in text
    assert "| patch | 0 of 1 |" in text
    write_results(planned(tmp_path, variants=["random"]))
    assert "| patch |" not in (tmp_path / "table.md").read_text()


def test_the_task_behind_the_probe_of_a_variant_without_pretraining_counts(tmp_path):
    def compose(name, overrides, temp=1.0, lr=1.0):
        cfg = fake_compose(name, overrides)
        cfg.task, cfg.optim, cfg.probe = {"temp": temp}, {"lr": lr}, {"every": 1}
        del cfg.overrides
        return cfg

    table = read_table(table_config(variants="random", seeds=1))

    def sha(**change):
        def composed(name, overrides):
            return compose(name, overrides, **(change if name == "pretrain" else {}))

        (run,) = Plan(table, tmp_path, composed, StageStore(tmp_path)).chosen()
        return run.definition.config_sha

    assert sha(temp=2.0) != sha()
    assert sha(lr=2.0) == sha()


def test_all_commits_of_a_runs_stages_are_named(tmp_path):
    shas = [{"git_sha": sha * 12, "git_dirty": sha == "b"} for sha in "ab"]
    run_table(planned(tmp_path), launcher(FakeStages(commits=shas)))
    assert "code aaaaaaaaaa, bbbbbbbbbb+ (+ =" in (tmp_path / "table.md").read_text()
