"""The parts of a campaign; whole campaigns are run by hand (tools/faults.py)."""

import io
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from faults.children import MARK, left_over, marked
from faults.damage import Target, content_sha256, damaged, outcome_of
from faults.interruptions import end_problem
from faults.results import Result, print_results, write_results
from faults.workplace import Workplace, difference, partial_files
from handmim.utils.json_files import read_rows, row_line


@pytest.fixture
def sleeper():
    """A marked process with a marked child."""
    child = "print('started', flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, MARK: "sleeper-1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    yield process
    for pid in marked("sleeper-1"):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_children_are_found_by_their_mark_after_their_parent_is_gone(sleeper):
    assert sleeper.pid in left_over("sleeper-1", patience_s=0.0)
    assert not marked("sleeper")
    assert sleeper.stdout.readline() == b"started\n"  # no environment before its exec
    sleeper.kill()
    sleeper.wait()
    (child,) = left_over("sleeper-1", patience_s=0.2)
    os.kill(child, signal.SIGKILL)
    assert not left_over("sleeper-1", patience_s=10.0)


def test_every_kind_of_work_is_a_command_with_workers(tmp_path):
    work = Workplace(tmp_path, limit_s=1.0, num_workers=3)
    for kind in ("pretraining", "fine-tuning", "evaluation", "rendering"):
        assert any(word.endswith("num_workers=3") for word in work.command(kind, "x")), kind
    assert len(list((tmp_path / "crops").iterdir())) == 24
    with pytest.raises(ValueError, match="no kind of work 'sleep'"):
        work.command("sleep", "x")


def a_run(folder, value=1.0, loss=0.5):
    folder.mkdir()
    torch.save({"task": {"w": torch.full((2,), value)}}, folder / "last.pt")
    save_file({"w": torch.full((2,), 1.0)}, folder / "backbone.safetensors")
    (folder / "scalars.jsonl").write_text(row_line({"step": 1, "loss": loss, "speed/s": value}))
    return folder


def test_runs_are_compared_bit_for_bit_but_for_speeds(tmp_path):
    whole = a_run(tmp_path / "a")
    assert difference(whole, a_run(tmp_path / "b")) == ""
    assert difference(whole, a_run(tmp_path / "c", value=1.0 + 1e-6)) == "last.pt: w"
    assert "scalars: row 0" in difference(whole, a_run(tmp_path / "d", loss=0.25))
    other = a_run(tmp_path / "e")
    (other / "backbone.safetensors").unlink()
    assert "is in one of the folders" in difference(whole, other)


def test_partial_files_are_named(tmp_path):
    (tmp_path / "x").mkdir()
    for name in (".last.pt.123", "x/.best.pt.77", ".lock", "last.pt"):
        (tmp_path / name).touch()
    assert partial_files(tmp_path) == [".best.pt.77", ".last.pt.123"]


@pytest.mark.parametrize(
    ("code", "text", "saved", "problem"),
    [
        (143, "stopped after step 3", 3, ""),
        (143, "stopped after step 3", 2, "stopped after 3, saved 2"),
        (143, "stopped after step 3", None, "stopped after 3, saved None"),
        (-15, "", None, ""),  # before anything was trained
        (0, "", None, ""),  # after the end
        (0, "stopped after step 3", 3, "exit code 0 after 3 steps"),
        (1, "", None, "exit code 1, 143 is required: "),
        (None, "", None, "hung"),
    ],
)
def test_the_end_after_a_signal_is_judged(tmp_path, code, text, saved, problem):
    if saved is not None:
        torch.save({"step": saved}, tmp_path / "last.pt")
    assert end_problem(text, code, "SIGTERM", tmp_path) == problem


def test_a_death_by_signal_that_loses_steps_is_a_problem(tmp_path):
    (tmp_path / "scalars.jsonl").write_text(row_line({"step": 1}))
    assert end_problem("", -15, "SIGTERM", tmp_path) == "trained and did not say where it stopped"
    assert end_problem("exported backbone: x", -15, "SIGTERM", tmp_path) == ""  # as it left


def test_damage_is_seeded_and_of_three_kinds():
    whole, rng = bytes(range(1, 256)) * 100, random.Random(0)
    copies = [damaged(whole, rng) for _ in range(50)]
    assert copies == [damaged(whole, r) for r in [random.Random(0)] for _ in range(50)]
    assert all(copy != whole for copy in copies)
    lengths = {len(copy) == len(whole) for copy in copies}
    assert lengths == {True, False}
    assert {sum(a != b for a, b in zip(whole, copy, strict=False)) > 1 for copy in copies} == {
        True, False
    }  # fmt: skip


def test_outcomes_of_reading_are_told_apart(tmp_path):
    path = tmp_path / "scalars.jsonl"
    path.write_text(row_line({"step": 1}) + row_line({"step": 2}))
    expected = content_sha256(read_rows(path))
    target = Target(path, read_rows)
    assert outcome_of(target, path, expected)[:2] == ("equal content", True)
    path.write_text(row_line({"step": 1}) + "torn")
    assert outcome_of(target, path, expected)[:2] == ("dropped by name", True)
    path.write_text(row_line({"step": 1}))
    assert outcome_of(target, path, expected)[:2] == ("another content in silence", False)

    def refuses(path):
        raise ValueError(f"{path} is damaged")

    def breaks(path):
        raise KeyError("x")

    def complains(path):
        raise ValueError("damaged")

    assert outcome_of(Target(path, refuses), path, "")[:2] == ("refused", True)
    assert outcome_of(Target(path, complains), path, "")[:2] == ("refused without a name", False)
    assert outcome_of(Target(path, breaks), path, "")[:2] == ("KeyError", False)


def test_contents_have_one_digest():
    one = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": [np.float32(1), (2, None)]}
    two = {"b": [np.float32(1), (2, None)], "a": torch.zeros(2, dtype=torch.bfloat16)}
    assert content_sha256(one) == content_sha256(two)
    for other in (torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(2), [0, 0]):
        assert content_sha256(one) != content_sha256(one | {"a": other})


def test_results_are_counted_and_kept_as_lines(tmp_path):
    results = [Result("x", "done", True), Result("x", "hung", False, 2.0, "why [b]")]
    write_results(tmp_path / "r.jsonl", results)
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["done", "hung"]
    console = Console(file=io.StringIO(), width=100)
    print_results(results, console)
    text = console.file.getvalue()
    assert "1 done, 1 hung" in text
    assert "x: hung: why [b]" in text
