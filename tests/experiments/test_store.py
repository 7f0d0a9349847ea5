import contextlib
import json
import math
import multiprocessing
import time

import pytest

from handmim.experiments.runs import StageStore, code_state, read_record, record_text


def test_an_equal_stage_is_run_once(tmp_path):
    store, calls = StageStore(tmp_path), []

    def work(folder):
        calls.append(folder)
        return {"mpjpe_mm": 3.0}

    one = store.get("probe", {"seed": 0, "lr": 1}, work)
    two = store.get("probe", {"lr": 1, "seed": 0}, work)
    assert one == two
    assert one["metrics"] == {"mpjpe_mm": 3.0}
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


def made_of(store, files, folders):
    """A stage that reads files; notes every attempt."""

    def work(folder):
        folders.append(folder)
        (folder / "last.pt").touch()
        return {"mpjpe_mm": 3.0}

    return store.get("probe", {"annotations": str(files[0])}, work, files[1:])


@pytest.mark.parametrize("changed", [0, 1])
def test_a_stage_counts_while_the_files_it_was_made_from_are_the_same(tmp_path, changed):
    store, ran = StageStore(tmp_path / "stages"), []
    files = [tmp_path / "a.json", tmp_path / "backbone"]  # in the definition, and beside it
    for file in files:
        file.write_text("one")
    record = made_of(store, files, ran)
    assert store.finished(record["folder"]) == made_of(store, files, ran) == record
    assert len(ran) == 1
    files[changed].write_text("two")
    assert store.finished(record["folder"]) is None
    made_of(store, files, ran)
    assert len(ran) == 2
    assert store.finished(record["folder"]) is not None
    assert [p.name for p in store.root.iterdir()] == [record["folder"]]


def test_a_file_written_anew_with_the_same_content_or_gone_changes_nothing(tmp_path):
    store, ran = StageStore(tmp_path / "stages"), []
    file = tmp_path / "a.json"
    file.write_text("one")
    record = made_of(store, [file], ran)
    file.unlink()
    assert store.finished(record["folder"]) == record
    time.sleep(0.01)
    file.write_text("one")
    assert made_of(store, [file], ran) == record


def test_inputs_of_the_store_itself_are_named_within_it(tmp_path):
    store = StageStore(tmp_path / "one")
    weights = store.root / "pretrain-x" / "backbone.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("one")
    record = store.get("probe", {}, lambda folder: {}, [weights])
    assert list(record["inputs"]) == ["pretrain-x/backbone.safetensors"]
    moved = StageStore((tmp_path / "one").rename(tmp_path / "two"))
    assert moved.finished(record["folder"]) == record
    (moved.root / "pretrain-x" / "backbone.safetensors").write_text("two")
    assert moved.finished(record["folder"]) is None


def test_a_stage_without_inputs_counts_as_it_is(tmp_path):
    store, ran = StageStore(tmp_path / "stages"), []
    file = tmp_path / "a.json"
    file.write_text("one")
    record = made_of(store, [file], ran)
    path = store.root / record["folder"] / "stage.json"
    del record["inputs"], record["format"]
    path.write_text(json.dumps(record))
    record["format"] = 1
    file.write_text("two")
    assert made_of(store, [file], ran) == record
    assert len(ran) == 1


def test_an_attempt_of_other_files_is_begun_anew(tmp_path):
    store, left = StageStore(tmp_path / "stages"), []
    file = tmp_path / "a.json"

    def dies(folder):
        left.append((folder / "last.pt").exists())
        (folder / "last.pt").touch()
        raise KeyboardInterrupt

    for content in ("one", "one", "two"):
        file.write_text(content)
        with pytest.raises(KeyboardInterrupt):
            store.get("pretrain", {}, dies, [file])
    assert left == [False, True, False]


def test_commits_are_those_of_the_start_and_of_every_attempt(tmp_path, monkeypatch):
    store, commit = StageStore(tmp_path), {"git_sha": "a", "git_dirty": False}
    monkeypatch.setattr("handmim.experiments.runs.git_state", lambda folder: dict(commit))

    def dies(folder):
        commit["git_sha"] = "committed meanwhile"
        raise KeyboardInterrupt

    def begin(sha):
        commit["git_sha"] = sha
        code_state.cache_clear()  # as another process would ask for the first time

    for sha in "aba":
        begin(sha)
        with pytest.raises(KeyboardInterrupt):
            store.get("pretrain", {}, dies)
    begin("c")
    record = store.get("pretrain", {}, lambda folder: {})
    code_state.cache_clear()
    assert record["git_sha"] == "c"
    assert [c["git_sha"] for c in record["commits"]] == ["b", "a", "c"]


def test_metrics_that_are_not_finite_are_null(tmp_path):
    store = StageStore(tmp_path)
    record = store.get("probe", {}, lambda folder: {"a": math.nan, "b": math.inf, "c": 1.0})
    text = (tmp_path / record["folder"] / "stage.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["metrics"] == {"a": None, "b": None, "c": 1.0}
    (tmp_path / record["folder"] / "stage.json").write_text('{"figures": {"a": NaN}}')
    assert store.finished(record["folder"]) == {"format": 1, "metrics": {"a": None}}


def test_no_changed_byte_of_a_record_changes_its_content(tmp_path):
    path = tmp_path / "stage.json"
    record = {"format": 2, "metrics": {"a": math.nan, "b": 0.1}, "commits": [1]}
    path.write_text(record_text(record))
    whole, same = path.read_bytes(), record | {"metrics": {"a": None, "b": 0.1}}
    assert read_record(path) == same
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 2]) + whole[index + 1 :])
        with contextlib.suppress(ValueError):
            assert read_record(path) == same, index


@pytest.mark.parametrize("content", ["", '{"metrics": {"a"', "[1]", "null", "[" * 10_000, "\0"])
def test_a_damaged_record_is_named_with_what_to_do(tmp_path, content):
    store = StageStore(tmp_path)
    record = store.get("probe", {}, lambda folder: {"a": 1.0})
    path = tmp_path / record["folder"] / "stage.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"stage\.json .*: delete the file, and what it records"):
        store.get("probe", {}, lambda folder: {"a": 2.0})
    path.unlink()
    assert store.get("probe", {}, lambda folder: {"a": 2.0})["metrics"] == {"a": 2.0}
