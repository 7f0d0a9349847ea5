import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handmim.render.cache import run_workers
from tests.processes import is_running

REPO = Path(__file__).parents[2]


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    program = "import sys; from tests.render.waiting_worker import start; start(sys.argv[1])"
    env = os.environ | {"PYTHONPATH": str(REPO)}
    until = time.monotonic() + 120
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=env) as parent:
        while len(found := [p for p in tmp_path.glob("pid-*") if p.read_text()]) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        parent.kill()
    for path in found:
        while is_running(int(path.read_text())):
            assert time.monotonic() < until, "a worker outlives its parent"
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("free", "kind", "message"),
    [(5, OSError, "5 bytes are free on its disk"), (10**9, RuntimeError, "failed .*No module")],
)
def test_a_worker_that_fails_says_why(tmp_path, monkeypatch, free, kind, message):
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(kind, match=message):
        run_workers("handmim.absent", {}, tmp_path, 1, lambda: None)
