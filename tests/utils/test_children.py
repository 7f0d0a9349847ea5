"""Processes that a run starts as its further ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import is_running

# The first process starts this program again as Fabric starts ranks.
PROGRAM = """
import os, subprocess, sys, time
from handmim.utils.processes import starting_ranks
from handmim.utils.entry import run_tool

who = sys.argv[1]

def main():
    if "LOCAL_RANK" not in os.environ:
        with starting_ranks():
            env = os.environ | {"LOCAL_RANK": "1"}
            rank = subprocess.Popen([sys.executable, __file__, who], env=env)
        print(rank.pid, flush=True)
        if who == "second":
            rank.wait()
            return
    elif who == "first":
        time.sleep(60)
    if who == "neither":
        time.sleep(60)
    raise ValueError("refused")

run_tool(main)
"""


@pytest.fixture
def launch(tmp_path):
    path = tmp_path / "ranks.py"
    path.write_text(PROGRAM)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    return lambda who: subprocess.Popen([sys.executable, str(path), who], **how)


@pytest.mark.parametrize("who", ["both", "first", "second"])
def test_what_ranks_refuse_is_said_once(launch, who):
    with launch(who) as process:
        _, said = process.communicate(timeout=60)
    assert said.count("refused") == 1


def test_a_rank_ends_with_the_process_that_started_it(launch):
    with launch("neither") as process:
        rank = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while is_running(rank):
        assert time.monotonic() < until, "a rank lives on"
        time.sleep(0.05)
