import json
import math
import random

import pytest

from handmim.utils.json_files import read_rows, row_line

ROWS = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": math.inf, "é": 1}, {"step": 3}]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "scalars.jsonl").write_text("".join(map(row_line, ROWS)))
    return tmp_path / "scalars.jsonl"


def test_rows_come_back_and_are_plain_json(path, caplog):
    assert read_rows(path) == ROWS
    assert json.loads(path.read_text().splitlines()[0])["loss"] == 0.1 + 0.2
    assert not caplog.text


def test_rows_without_a_crc_are_taken_and_a_missing_file_has_none(path, caplog):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_rows(path) == ROWS
    assert read_rows(path.with_name("absent.jsonl")) == []
    assert not caplog.text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1, 2]", "a list, an object is required"),
        ("7", "a int, an object is required"),
        ("null", "a NoneType, an object"),
        ('{"loss": 1.0}', "no integer step"),
        ('{"step": "2"}', "no integer step"),
        ('{"step": true}', "no integer step"),
        ('{"step": 2, "loss": "low"}', "no number as 'loss'"),
        ('{"step": 2, "loss": [1]}', "no number as 'loss'"),
        ('{"step": 2, "lo', "torn, or no JSON"),
        ("[" * 100_000, "recursion depth"),
        ('{"step": ' + "9" * 10_000 + "}", "torn, or no JSON"),
        ("\udcff\udcfe", "torn, or no JSON"),
    ],
)
def test_other_lines_are_dropped_with_one_warning(path, caplog, line, reason):
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line + "\n" + row_line({"step": 4}))
    assert read_rows(path) == [*ROWS, {"step": 4}]
    (record,) = caplog.records
    assert f"scalars.jsonl: dropped 1 rows: line 4 ({reason}" in record.getMessage() or (
        reason == "recursion depth" and "line 4 (maximum recursion depth" in record.getMessage()
    )


def test_a_warning_names_three_lines(path, caplog):
    path.write_text("x\n" * 1000)
    assert read_rows(path) == []
    assert caplog.messages[0].endswith("line 3 (torn, or no JSON), ...")
    assert "dropped 1000 rows: line 1 " in caplog.messages[0]


def test_no_changed_byte_changes_a_value(path):
    whole, rng = path.read_bytes(), random.Random(0)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([rng.randrange(256)]) + whole[place + 1 :])
        assert all(row in ROWS for row in read_rows(path)), place
