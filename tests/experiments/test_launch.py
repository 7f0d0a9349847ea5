"""Processes of runs, with a script that costs nothing in place of a run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from handmim.engine.workers import Stopped, StopSignals
from handmim.experiments.runner import launch
from tests.experiments.conftest import planned

# Notes its arguments; the run random/0 is killed, or it waits to be stopped.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

from handmim.utils.processes import end_with_parent

root = Path(__file__).parent
given = sys.argv[1:]
with (root / "calls.jsonl").open("a") as file:
    file.write(json.dumps({"given": given, "threads": os.environ.get("OMP_NUM_THREADS")}) + "\\n")
(names,) = [w.split("=")[1] for w in given if w.startswith("run=")]
for name in names.split(","):
    if "die" in given and name == "random/0":
        os.kill(os.getpid(), signal.SIGKILL)
    if "wait" in given:
        def stop(number, frame):
            (root / "stopping").write_text("to stop")
            sys.exit(1)
        signal.signal(signal.SIGTERM, stop)
        end_with_parent()
        (root / "waits").write_text("")
        time.sleep(30)
    variant, seed = name.split("/")
    folder = root / variant / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if "slow" in given:
        time.sleep(1)
    (folder / "result.json").write_text(json.dumps({"name": name}))
    print("made", name)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(SCRIPT)
    return [sys.executable, str(path)]


def calls(folder):
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def test_a_multirun_is_one_process_for_all_runs(tmp_path, script):
    runs = planned(tmp_path).chosen()
    ended = []
    launch(runs, ended.append, ["table=t", "hydra/launcher=joblib"], command=script)
    (call,) = calls(tmp_path)
    names = ",".join(r.name for r in runs)
    assert call["given"] == ["--multirun", f"run={names}", "table=t", "hydra/launcher=joblib"]
    assert sorted(r.name for r in ended) == sorted(r.name for r in runs)
    assert all((r.folder / "result.json").is_file() for r in runs)


def test_a_run_that_is_made_again_is_reported_once_it_is_written_again(tmp_path, script):
    run = planned(tmp_path).chosen()[0]
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text("before")
    found = []

    def note(run):
        found.append((run.folder / "result.json").read_text())

    launch([run], note, ["slow"], command=script)
    assert "before" not in found


def test_a_pool_gives_each_run_a_process_with_one_thread_and_a_log(tmp_path, script):
    runs = planned(tmp_path).chosen()
    ended = []
    launch(runs, ended.append, ["table=t"], at_once=2, command=script)
    assert sorted(r.name for r in ended) == sorted(r.name for r in runs)
    assert {c["threads"] for c in calls(tmp_path)} == {"1"}
    assert all("machine.num_threads=1" in c["given"] for c in calls(tmp_path))
    assert (runs[1].folder / "log.txt").read_text() == "made patch/0\n"


def test_a_process_that_was_killed_is_a_failed_run_and_the_others_go_on(tmp_path, script):
    runs = planned(tmp_path).chosen()
    launch(runs, lambda run: None, ["die"], at_once=2, command=script)
    assert runs[0].state == "failed"
    assert "exit code -9" in (runs[0].folder / "error.txt").read_text()
    assert (runs[3].folder / "result.json").is_file()


@pytest.mark.parametrize("at_once", [1, 2])
def test_stopping_stops_runs_and_waits_for_them(tmp_path, script, at_once):
    runs = planned(tmp_path).chosen()

    def stop_when_it_waits():
        while not (tmp_path / "waits").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_waits, daemon=True).start()
    with pytest.raises(Stopped) as ended, StopSignals():
        launch(runs, lambda run: None, ["wait"], at_once=at_once, command=script)
    assert ended.value.code == 143
    assert (tmp_path / "stopping").read_text() == "to stop"
    assert len(calls(tmp_path)) <= at_once


def test_a_run_is_stopped_when_the_table_is_killed(tmp_path, script):
    command = [sys.executable, "-m", "tests.experiments.tied_pool", script[1], str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    until = time.monotonic() + 60
    with subprocess.Popen(command, env=env) as table:
        while not (tmp_path / "waits").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        table.kill()
    while not (tmp_path / "stopping").exists():
        assert time.monotonic() < until, "a run outlives its table"
        time.sleep(0.02)
