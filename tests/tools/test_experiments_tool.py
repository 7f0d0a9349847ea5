import csv
import json

import cv2
import pytest

from handmim.data.datasets import read_ids
from tests.tools.calls import call

DATA = "data.num_val: 8, data.num_train: 16, data.num_workers: 0, data.scene.image_px: 48"
TABLE = [
    "table=objectives",
    "budget=smoke",
    "seeds=1",
    "variants=[random,class_recon]",
    "machine.accelerator=cpu",
    "machine.num_threads=1",
    f"pretrain={{probe.hook.train_set.num: 16, {DATA}}}",
    f"finetune={{{DATA}}}",
]


def test_a_dry_run_lists_the_runs_and_unknown_names_are_answered(workdir):
    given = [*TABLE, f"paths.data_dir={workdir / 'data'}", f"paths.run_root={workdir / 'abl'}"]
    text = call(workdir, "experiments.py", *given, "dry_run=true")
    assert "class_recon/0" in text
    assert "pretrain 4, finetune_50 3, finetune_100 3" in text
    assert "2 of 2 runs to make, 16 steps" in text
    assert not (workdir / "abl").exists()
    given[3] = "variants=[nope]"
    text = call(workdir, "experiments.py", *given, fails=True)
    assert "no variants ['nope'] in this table, it has ['random'" in text
    text = call(workdir, "experiments.py", "table=nope", fails=True)
    assert "objectives" in text
    text = call(workdir, "experiments.py", "--help")
    assert "table: articulation, compute, controls" in text
    assert "finished runs are kept" in text


@pytest.mark.slow
def test_a_table_is_filled_and_runs_nothing_twice(workdir):
    given = [*TABLE, f"paths.data_dir={workdir / 'data'}", f"paths.run_root={workdir / 'abl'}"]
    text = call(workdir, "experiments.py", *given, f"out={workdir / 'docs'}")
    folder = workdir / "abl" / "ablations" / "objectives-renders-smoke"
    runs = json.loads((folder / "runs.json").read_text())
    assert {run["variant"] for run in runs} == {"random", "class_recon"}
    keys = {"probe/err2d_percent", "finetune_50/mpjpe_mm", "finetune_100/pa_mpjpe_mm"}
    assert all(keys <= set(run["metrics"]) for run in runs)
    assert all(run["stages"]["probe"]["threads"] == 1 for run in runs)
    assert "| random init | 1 |" in text
    assert (folder.parent / "multirun.yaml").is_file()
    assert not (workdir / "multirun.yaml").exists()
    names = {p.name for p in (workdir / "docs").iterdir()}
    assert names == {"objectives-renders-smoke.csv", "objectives-renders-smoke.png"}
    written = (folder / "random" / "seed_0" / "result.json").stat().st_mtime_ns
    call(workdir, "experiments.py", *given, "jobs=2")
    assert (folder / "random" / "seed_0" / "result.json").stat().st_mtime_ns == written
    # The same rows in processes of their own, with nothing left but the stages: none runs again.
    stages = sorted((workdir / "abl" / "ablations" / "stages").glob("*/stage.json"))
    assert len(stages) == 1 + 2 + 4
    call(workdir, "experiments.py", *given, "jobs=2", "name=again")
    assert sorted((workdir / "abl" / "ablations" / "stages").glob("*/stage.json")) == stages
    again = json.loads((workdir / "abl" / "ablations" / "again" / "runs.json").read_text())
    assert [run["metrics"] for run in again] == [run["metrics"] for run in runs]


LABELS = [
    "table=label_efficiency",
    "inits=[random,mae]",
    "fractions=[0.25,0.5,1.0]",
    "budget=smoke",
    "seeds=1",
    "machine.accelerator=cpu",
    "machine.num_threads=1",
    f"pretrain={{probe.hook.train_set.num: 16, {DATA}}}",
    f"finetune={{{DATA}}}",
]


def of_labels(workdir):
    return [*LABELS, f"paths.data_dir={workdir / 'data'}", f"paths.run_root={workdir / 'lab'}"]


def test_label_efficiency_is_a_table_of_inits(workdir):
    text = call(workdir, "experiments.py", *of_labels(workdir), "dry_run=true")
    assert "pretrain 4, finetune_25 3, finetune_50 3, finetune_100 3" in text
    assert "2 of 2 runs to make, 22 steps" in text
    assert not (workdir / "lab").exists()
    given = ["table=label_efficiency", "inits=[nope]", "dry_run=true"]
    text = call(workdir, "experiments.py", *given, fails=True)
    assert "Could not find 'method/nope'" in text


def test_earlier_names_of_tools_and_options_are_answered(workdir):
    for tool in ("ablate.py", "label_efficiency.py"):
        assert "python tools/experiments.py table=" in call(workdir, tool, fails=True)
    text = call(workdir, "experiments.py", "table=objectives", "rows=[patch]", fails=True)
    assert "variants=[patch]" in text


@pytest.mark.slow
def test_inits_are_compared_over_shares_of_the_labels(workdir):
    given = [*of_labels(workdir), "jobs=2", f"out={workdir / 'labdocs'}"]
    text = call(workdir, "experiments.py", *given)
    folder = workdir / "lab" / "ablations" / "label_efficiency-renders-smoke"
    runs = json.loads((folder / "runs.json").read_text())
    assert [run["variant"] for run in runs] == ["random", "mae"]
    for percent, num in ((25, 4), (50, 8), (100, 16)):
        assert {run["metrics"][f"finetune_{percent}/num_labels"] for run in runs} == {num}
    assert "## Against random init" in text
    assert "equally many steps" in text
    with (folder / "table.csv").open() as file:
        random, mae = csv.DictReader(file)
    assert float(random["finetune_25/mpjpe_mm:change"]) == 0
    assert mae["finetune_25/mpjpe_mm:change"]
    assert cv2.imread(str(folder / "curve.png")).std() > 10
    assert (workdir / "labdocs" / "label_efficiency-renders-smoke-curve.png").is_file()
    # One seed gives all inits the same labels, and those of a smaller share to a larger one.
    stages = workdir / "lab" / "ablations" / "stages"
    lists = {}
    for run in runs:
        folders = {p: stages / run["stages"][f"finetune_{p}"]["folder"] for p in (25, 50, 100)}
        for percent in (25, 50):
            lists.setdefault(percent, []).append(read_ids(folders[percent] / "labels.txt"))
        assert not (folders[100] / "labels.txt").exists()
    assert all(one == two for one, two in lists.values())
    assert set(lists[25][0]) < set(lists[50][0])
    # Other weights in a multirun of one process: nothing that is there runs again.
    before = {p: p.stat().st_mtime_ns for p in stages.glob("*/stage.json")}
    backbone = stages / runs[1]["stages"]["pretrain"]["folder"] / "backbone.safetensors"
    more = [*of_labels(workdir), f"inits=[random,mae,{backbone}]"]
    call(workdir, "experiments.py", *[g for g in more if g != LABELS[1]])
    assert {p: p.stat().st_mtime_ns for p in before} == before
    runs = json.loads((folder / "runs.json").read_text())
    assert {run["variant"] for run in runs} == {"random", "mae", "backbone"}
