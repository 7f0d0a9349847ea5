import json

import pytest

from tests.tools.calls import TINY, call

METHODS_MEASURED = ("mae", "handmim")

ABLATE = [
    "table=objectives",
    "budget=smoke",
    "seeds=1",
    "rows=[random,class_recon]",
    "machine.accelerator=cpu",
    "machine.num_threads=1",
    'pretrain=["probe.hook.train_set.num=16","data.num_val=8","data.num_train=16",'
    '"data.num_workers=0","data.scene.image_px=48"]',
    'finetune=["data.num_val=8","data.num_train=16","data.num_workers=0","data.scene.image_px=48"]',
]


def test_an_ablation_says_what_it_would_run_and_what_it_does_not_know(place):
    words = [*ABLATE, f"paths.data_dir={place / 'data'}", f"paths.run_root={place / 'abl'}"]
    text = call(place, "ablate.py", *words, "dry_run=true")
    assert "class_recon/0" in text
    assert "pretrain 4, finetune_50 3, finetune_100 3" in text
    assert "2 of 2 cells to run, 16 steps" in text
    assert not (place / "abl").exists()
    words[3] = "rows=[nope]"
    text = call(place, "ablate.py", *words, fails=True)
    assert "no rows ['nope'] in this table, it has ['random'" in text
    text = call(place, "ablate.py", "table=nope", fails=True)
    assert "objectives" in text
    text = call(place, "ablate.py", "--help")
    assert "table: articulation, controls" in text
    assert "finished cells are kept" in text


@pytest.mark.slow
def test_an_ablation_fills_its_table_and_runs_nothing_twice(place):
    words = [*ABLATE, f"paths.data_dir={place / 'data'}", f"paths.run_root={place / 'abl'}"]
    text = call(place, "ablate.py", *words, f"out={place / 'docs'}")
    folder = place / "abl" / "ablations" / "objectives-renders-smoke"
    cells = json.loads((folder / "cells.json").read_text())
    assert {cell["row"] for cell in cells} == {"random", "class_recon"}
    keys = {"probe/err2d_percent", "finetune_50/mpjpe_mm", "finetune_100/pa_mpjpe_mm"}
    assert all(keys <= set(cell["figures"]) for cell in cells)
    assert all(cell["stages"]["probe"]["threads"] == 1 for cell in cells)
    assert "| random init | 1 |" in text
    assert (folder.parent / "multirun.yaml").is_file()
    assert not (place / "multirun.yaml").exists()
    names = {p.name for p in (place / "docs").iterdir()}
    assert names == {f"objectives-renders-smoke.{end}" for end in ("md", "csv", "png", "json")}
    written = (folder / "random" / "seed_0" / "cell.json").stat().st_mtime_ns
    call(place, "ablate.py", *words, "jobs=2")
    assert (folder / "random" / "seed_0" / "cell.json").stat().st_mtime_ns == written
    # The same rows in processes of their own, with nothing left but the stages: none runs again.
    stages = sorted((place / "abl" / "ablations" / "stages").glob("*/stage.json"))
    assert len(stages) == 1 + 2 + 4
    call(place, "ablate.py", *words, "jobs=2", "name=again")
    assert sorted((place / "abl" / "ablations" / "stages").glob("*/stage.json")) == stages
    again = json.loads((place / "abl" / "ablations" / "again" / "cells.json").read_text())
    assert [cell["figures"] for cell in again] == [cell["figures"] for cell in cells]


def test_methods_are_measured_by_the_first(place):
    words = ["experiment=cpu_base", "trainer.batch_size=2", *TINY]
    text = call(place, "benchmark_methods.py", "--steps=1", "--methods=mae,handmim", *words)
    (mae,), (handmim,) = ([r for r in text.splitlines() if f" {m} " in r] for m in METHODS_MEASURED)
    assert "1.00" in mae
    assert float(handmim.split("│")[3]) > 1.0
