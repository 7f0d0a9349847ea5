import csv
import json

import cv2
import pytest

from handmim.data.label_subsets import read_ids
from tests.tools.calls import call

DATA = '"data.num_val=8","data.num_train=16","data.num_workers=0","data.scene.image_px=48"'
WORDS = [
    "inits=[random,mae]",
    "fractions=[0.25,0.5,1.0]",
    "budget=smoke",
    "seeds=1",
    "machine.accelerator=cpu",
    "machine.num_threads=1",
    f'pretrain=["probe.hook.train_set.num=16",{DATA}]',
    f"finetune=[{DATA}]",
]


def words(place):
    return [*WORDS, f"paths.data_dir={place / 'data'}", f"paths.run_root={place / 'lab'}"]


def test_it_says_what_it_would_run(place):
    text = call(place, "label_efficiency.py", *words(place), "dry_run=true")
    assert "pretrain 4, finetune_25 3, finetune_50 3, finetune_100 3" in text
    assert "2 of 2 cells to run, 22 steps" in text
    assert not (place / "lab").exists()
    text = call(place, "label_efficiency.py", "inits=[nope]", "dry_run=true", fails=True)
    assert "Could not find 'method/nope'" in text
    text = call(place, "label_efficiency.py", "--help")
    assert "Groups of this tool: setting budget runtime." in text


@pytest.mark.slow
def test_starts_are_compared_over_shares_of_the_labels(place):
    text = call(place, "label_efficiency.py", *words(place), "jobs=2", f"out={place / 'labdocs'}")
    folder = place / "lab" / "ablations" / "label_efficiency-renders-smoke"
    cells = json.loads((folder / "cells.json").read_text())
    assert [cell["row"] for cell in cells] == ["random", "mae"]
    for percent, num in ((25, 4), (50, 8), (100, 16)):
        assert {cell["figures"][f"finetune_{percent}/num_labels"] for cell in cells} == {num}
    assert "## Against random init" in text
    assert "equally many steps" in text
    with (folder / "table.csv").open() as file:
        random, mae = csv.DictReader(file)
    assert float(random["finetune_25/mpjpe_mm:change"]) == 0
    assert mae["finetune_25/mpjpe_mm:change"]
    assert cv2.imread(str(folder / "curve.png")).std() > 10
    assert (place / "labdocs" / "label_efficiency-renders-smoke-curve.png").is_file()
    # One seed gives every start the same labels, and those of a smaller share to a larger one.
    stages = place / "lab" / "ablations" / "stages"
    lists = {}
    for cell in cells:
        runs = {p: stages / cell["stages"][f"finetune_{p}"]["folder"] for p in (25, 50, 100)}
        for percent in (25, 50):
            lists.setdefault(percent, []).append(read_ids(runs[percent] / "labels.txt"))
        assert not (runs[100] / "labels.txt").exists()
    assert all(one == two for one, two in lists.values())
    assert set(lists[25][0]) < set(lists[50][0])
    # Another start in a multirun of one process: nothing that is there runs again.
    before = {p: p.stat().st_mtime_ns for p in stages.glob("*/stage.json")}
    backbone = stages / cells[1]["stages"]["pretrain"]["folder"] / "backbone.safetensors"
    more = [f"inits=[random,mae,{backbone}]", *words(place)[1:]]
    call(place, "label_efficiency.py", *more)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    cells = json.loads((folder / "cells.json").read_text())
    assert {cell["row"] for cell in cells} == {"random", "mae", "backbone"}
