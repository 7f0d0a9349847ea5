import io
import json
import time

import pytest
import torch
from rich.console import Console

from benchmark.core import Bench, Row, compared, flops_of, peak_flops_per_s, peak_mib
from benchmark.table import machine_metadata, rows_table, write_rows

CPU = torch.device("cpu")


def test_variants_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = Bench(CPU, rounds=3).race({k: lambda k=k: calls.append(k) for k in "ab"})
    assert "".join(calls) == "abbaabba"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_more_work_takes_more_cpu_time_and_sleeping_takes_none():
    a = torch.randn(200, 200)

    def work(times: int) -> None:
        for _ in range(times):
            a @ a

    works = {"one": lambda: work(20), "four": lambda: work(80), "idle": lambda: time.sleep(0.1)}
    seconds = Bench(CPU, rounds=5).race(works)
    rows = {row.variant: row for row in compared("s", "c", seconds, "one", items=20)}
    assert rows["four"].speedup < 0.6
    assert rows["idle"].ms < 50


def test_figures_by_hand():
    seconds = {"slow": [4.0, 6.0, 5.0], "fast": [2.0, 2.0, 1.0]}
    slow, fast = compared("s", "c", seconds, "slow", items=10, unit="x", promised={"fast": 3.0})
    assert (slow.ms, slow.speedup, slow.per_s) == (5000.0, None, 2.0)
    assert (fast.speedup, fast.low, fast.high, fast.promised) == (2.5, 2.0, 5.0, 3.0)


def test_rows_are_printed_and_written(tmp_path):
    rows = [Row("s", "c", "a", ms=2.0), Row("s", "c", "b", ms=1.0, speedup=2.0, low=1.5, high=3.0)]
    console = Console(width=120, file=io.StringIO())
    console.print(rows_table(rows))
    text = console.file.getvalue()
    assert "1.50-3.00" in text
    assert "GFLOP" not in text  # nobody has any
    write_rows(tmp_path / "a.json", rows, machine_metadata(CPU))
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["rows"][1] == rows[1].plain()
    assert content["machine"]["torch"] == torch.__version__


def _holding(mib: int):
    def work() -> None:
        torch.ones(mib * 2**18).sum()

    return work


def _broken():
    raise KeyError("no such work")


def test_peak_memory_is_that_of_the_work():
    assert 60 < peak_mib(_holding, 64, device=CPU) < 80


@pytest.mark.filterwarnings("ignore")
def test_work_that_fails_elsewhere_is_named():
    with pytest.raises(RuntimeError, match="_broken could not be measured"):
        peak_mib(_broken, device=CPU)


def test_operations_and_their_rate():
    a, b = torch.randn(8, 16), torch.randn(16, 32)
    assert flops_of(lambda: a @ b) == 2 * 8 * 16 * 32
    assert peak_flops_per_s(CPU, torch.float32, rounds=2) > 1e8


def test_what_falls_short_of_a_promise_is_red():
    rows = [
        Row("s", "c", "a", per_s=90, unit="x", promised_per_s=100, speedup=3, promised=2.5),
        Row("s", "c", "b", per_s=110, unit="x", promised_per_s=100, speedup=2, promised=2.5),
    ]
    console = Console(width=120, file=io.StringIO(), force_terminal=True)
    console.print(rows_table(rows))
    first, second = [line for line in console.file.getvalue().split("\n") if " x" in line]
    red = "\x1b[31m"
    assert red + "90 x" in first
    assert red + "3.00" not in first
    assert red + "110 x" not in second
    assert red + "2.00" in second
