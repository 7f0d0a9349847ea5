"""A process that is stopped: the others end in time and name it."""

import pytest

from handmim.utils.processes import STALLED
from tests.engine.launched import start


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_others_end_and_name_the_stopped_process(stopped, tmp_path):
    arguments = ["-m", "tests.engine.stopped_worker", str(tmp_path / "run"), str(stopped)]
    processes = start(arguments)
    try:
        waiting = processes[1 - stopped]
        text, _ = waiting.communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    assert waiting.returncode == STALLED, text
    assert f"rank {1 - stopped} stands still" in text
    assert f"rank {stopped} does not answer" in text
