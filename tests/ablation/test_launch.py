"""Processes of cells, with a script that costs nothing in place of a cell."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from handmim.ablation.launch import local_pool, multirun
from handmim.engine.signals import Stopped, StopSignals
from tests.ablation.conftest import planned

# Notes how it was called; the cell random/0 dies without a word, patch/0 waits to be stopped.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

from handmim.utils.processes import end_with_parent

root = Path(__file__).parent
words = sys.argv[1:]
with (root / "calls.jsonl").open("a") as file:
    file.write(json.dumps({"words": words, "threads": os.environ.get("OMP_NUM_THREADS")}) + "\\n")
(names,) = [w.split("=")[1] for w in words if w.startswith("cell=")]
for name in names.split(","):
    if "die" in words and name == "random/0":
        os.kill(os.getpid(), signal.SIGKILL)
    if "wait" in words:
        def stop(number, frame):
            (root / "asked").write_text("to stop")
            sys.exit(1)
        signal.signal(signal.SIGTERM, stop)
        end_with_parent()
        (root / "waits").write_text("")
        time.sleep(30)
    row, seed = name.split("/")
    folder = root / row / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if "slow" in words:
        time.sleep(1)
    (folder / "cell.json").write_text(json.dumps({"name": name}))
    print("made", name)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "cell.py"
    path.write_text(SCRIPT)
    return path


def calls(folder):
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def test_a_multirun_is_one_process_for_all_cells(tmp_path, script):
    cells = planned(tmp_path).chosen()
    told = []
    multirun([str(script)], ["table=t", "hydra/launcher=joblib"], cells, told.append)
    (call,) = calls(tmp_path)
    names = ",".join(c.name for c in cells)
    assert call["words"] == ["--multirun", f"cell={names}", "table=t", "hydra/launcher=joblib"]
    assert {c.name for c in told} <= {c.name for c in cells}
    assert all((c.folder / "cell.json").is_file() for c in cells)


def test_a_cell_that_is_made_again_is_told_of_once_it_is_written_again(tmp_path, script):
    cell = planned(tmp_path).chosen()[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / "cell.json").write_text("before")
    told = []
    multirun(
        [str(script)], ["slow"], [cell], lambda c: told.append((c.folder / "cell.json").read_text())
    )
    assert "before" not in told


def test_a_pool_gives_each_cell_a_process_with_one_thread_and_a_log(tmp_path, script):
    cells = planned(tmp_path).chosen()
    told = []
    local_pool([str(script)], ["table=t"], cells, finished=told.append, jobs=2)
    assert sorted(c.name for c in told) == sorted(c.name for c in cells)
    assert {c["threads"] for c in calls(tmp_path)} == {"1"}
    assert all("machine.num_threads=1" in c["words"] for c in calls(tmp_path))
    assert (cells[1].folder / "log.txt").read_text() == "made patch/0\n"


def test_a_process_that_was_killed_is_a_failed_cell_and_the_others_go_on(tmp_path, script):
    cells = planned(tmp_path).chosen()
    local_pool([str(script)], ["die"], cells, finished=lambda cell: None, jobs=1)
    assert cells[0].state == "failed"
    assert "exit code -9" in (cells[0].folder / "error.txt").read_text()
    assert (cells[3].folder / "cell.json").is_file()


@pytest.mark.parametrize("launch", ["pool", "multirun"])
def test_stopping_asks_cells_to_stop_and_waits_for_them(tmp_path, script, launch):
    cells = planned(tmp_path).chosen()

    def stop_when_it_waits():
        while not (tmp_path / "waits").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_waits, daemon=True).start()
    run = partial(local_pool, jobs=1) if launch == "pool" else multirun
    with pytest.raises(Stopped) as ended, StopSignals():
        run([str(script)], ["wait"], cells, finished=lambda cell: None)
    assert ended.value.code == 143
    assert (tmp_path / "asked").read_text() == "to stop"
    assert len(calls(tmp_path)) == 1


def test_a_cell_is_asked_to_stop_when_the_table_is_killed(tmp_path, script):
    command = [sys.executable, "-m", "tests.ablation.tied_pool", str(script), str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    until = time.monotonic() + 60
    with subprocess.Popen(command, env=env) as table:
        while not (tmp_path / "waits").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        table.kill()
    while not (tmp_path / "asked").exists():
        assert time.monotonic() < until, "a cell outlives its table"
        time.sleep(0.02)
