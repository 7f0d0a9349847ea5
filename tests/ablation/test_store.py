import multiprocessing
import time

import pytest

from handmim.ablation.store import StageStore


def test_an_equal_stage_is_run_once(tmp_path):
    store, calls = StageStore(tmp_path), []

    def work(folder):
        calls.append(folder)
        return {"mpjpe_mm": 3.0}

    one = store.get("probe", {"seed": 0, "lr": 1}, work)
    two = store.get("probe", {"lr": 1, "seed": 0}, work)
    assert one == two
    assert one["figures"] == {"mpjpe_mm": 3.0}
    store.get("probe", {"seed": 1, "lr": 1}, work)
    assert len(calls) == 2
    assert calls[0] == tmp_path / one["folder"]


def test_an_interrupted_stage_runs_again_and_its_seconds_add_up(tmp_path):
    store = StageStore(tmp_path)

    def dies(folder):
        time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("pretrain", {}, dies)
    record = store.get("pretrain", {}, lambda folder: {})
    assert 0.05 <= record["seconds"] < 5


def _slow(root, queue):
    def work(folder):
        time.sleep(0.5)
        queue.put("ran")
        return {}

    StageStore(root).get("pretrain", {}, work)


def test_two_processes_do_not_run_one_stage_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_slow, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert queue.get() == "ran"
    assert queue.empty()
