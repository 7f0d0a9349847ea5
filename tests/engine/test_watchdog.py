import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handmim.engine.checkpoint import load_checkpoint
from handmim.engine.workers import Watchdog, beat
from handmim.utils.processes import STALLED
from handmim.utils.run import Run

SLOW = pytest.mark.slow
REPO = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("num_workers", "limit_s", "waited"),
    [("0", "1", "1 s for the batch"), pytest.param("1", "25", "20 s for loader", marks=SLOW)],
)
def test_a_run_that_stands_still_ends_with_what_it_waited_for(
    tmp_path, num_workers, limit_s, waited
):
    """As a sample on a dead mount makes it."""
    program = "import sys; from tests.engine.faulty import *; train_until_stalled(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(tmp_path), num_workers, limit_s]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == STALLED, done.stderr
    text = f"rank 0 stands still: it waited {waited}"
    assert text in done.stderr
    assert text in (tmp_path / "log.txt").read_text()
    assert "machine.stall_timeout_s" in done.stderr
    if num_workers == "0":
        assert "faulty.py" in done.stderr  # where it stands
    else:
        assert load_checkpoint(tmp_path / "last.pt")["step"] == 2, "saved first"


def test_a_run_that_moves_slowly_goes_on(tmp_path):
    run = Run.start("toy", tmp_path, 0, {}, accelerator="cpu", stall_timeout_s=0.6)
    with Watchdog(run):
        for step in range(5):
            beat(f"step {step}")
            time.sleep(0.2)  # 1 s together: longer than the limit
    assert not list(tmp_path.glob("stalled*"))
    assert "stands still" not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_is_positive(tmp_path, limit):
    with pytest.raises(ValueError, match="stall_timeout_s"):
        Run.start("toy", tmp_path, 0, {}, accelerator="cpu", stall_timeout_s=limit)
