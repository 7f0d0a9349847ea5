import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from handmim.engine.workers import WorkerDiedError, signal_numbers
from handmim.utils.files import UnreadableSample
from tests.engine.faulty import Faulty, loader_of
from tests.engine.toy import DATA
from tests.processes import is_running

REPO = Path(__file__).parents[2]


def test_workers_start_after_opencv_was_used_and_end_with_a_killed_parent():
    command = [sys.executable, "-c", "from tests.engine.faulty import *; begin_after_opencv()"]
    free = {k: v for k, v in os.environ.items() if "THREADS" not in k}
    env = free | {"PYTHONPATH": str(REPO)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        late = threading.Timer(240, parent.kill)  # where the workers hang
        late.start()
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
        late.cancel()
    assert len(pids) == 2
    until = time.monotonic() + 60
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.05)


def test_signals_that_stop_a_run_leave_its_workers_alone():
    with loader_of(DATA, 2) as loading:
        loading.batch_of(0)
        workers = active_children()
        for number in signal_numbers():
            for worker in workers:
                os.kill(worker.pid, number)
        assert [len(loading.batch_of(step).x) for step in range(1, 10)] == [4] * 9
    assert not {worker.pid for worker in workers} & {w.pid for w in active_children()}


def test_a_stopped_worker_is_ended():
    with loader_of(DATA, 1, end=100) as loading:
        loading.batch_of(0)
        (worker,) = active_children()
        os.kill(worker.pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert worker.exitcode == -signal.SIGKILL


def test_a_worker_that_dies_is_named_with_its_signal():
    batches = loader_of(Faulty("dies", (3,)), 1)
    with pytest.raises(WorkerDiedError, match=r"worker \d+ was ended by SIGKILL: out of memory\?$"):
        list(batches)


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("error", KeyError, "'no label for 3.jpg'"),
        ("unreadable", UnreadableSample, "3.jpg: cut short"),
        ("unpicklable", RuntimeError, "OddError: odd 3"),
    ],
)
def test_an_error_of_a_worker_keeps_its_kind_and_its_text(fault, kind, text):
    batches = loader_of(Faulty(fault, (3,)), 1)
    with pytest.raises(kind) as raised:
        list(batches)
    assert type(raised.value) is kind
    assert str(raised.value) == text
    assert "tests/engine/faulty.py" in str(raised.value.__cause__)  # where it was raised


@pytest.mark.slow
def test_an_interpreter_ends_while_workers_never_answer():
    program = "import sys; from tests.engine.faulty import *; leave_while_loading(); sys.exit(3)"
    env = os.environ | {"PYTHONPATH": str(REPO)}
    assert subprocess.run([sys.executable, "-c", program], env=env, timeout=100).returncode == 3
