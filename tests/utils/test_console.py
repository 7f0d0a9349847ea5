import logging
import math
import sys

import pytest

from handmim.utils.console import Progress, markdown_table, metric_text

LOG = logging.getLogger("handmim.tests")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("pa_mpjpe_mm", 10.005, "10.01"),
        ("ms_per_image", 3.0, "3.00"),
        ("seconds", 61.26, "61.3"),
        ("pa_f5", 0.51249, "0.512"),
        ("pa_f5", None, "-"),
        ("pa_f5", math.nan, "-"),
    ],
)
def test_units_decide_the_decimals_of_a_metric(key, value, text):
    assert metric_text(key, value) == text


def test_a_markdown_table_aligns_numbers_right_and_keeps_pipes_out_of_cells():
    text = markdown_table(["", "run", "mm"], [["a|b", "c", "1.0"]], num_left=2)
    assert text == "|  | run | mm |\n| --- | --- | ---: |\n| a/b | c | 1.0 |"


def test_without_a_terminal_lines_come_when_due(caplog):
    caplog.set_level(logging.INFO, LOG.name)
    with Progress(8, log=LOG, every_s=0.0, done=2) as progress:
        progress.update(lambda: 5)
    (line,) = caplog.messages
    assert line.startswith("5 of 8 images, ")


def test_items_are_not_counted_before_a_line_is_due(caplog):
    caplog.set_level(logging.INFO, LOG.name)
    with Progress(8, log=LOG) as progress:
        progress.update(lambda: 1 // 0)
    assert caplog.messages == []


def test_the_rate_leaves_out_what_was_done_before():
    assert Progress(8, done=4).rate(4) == 0
    assert Progress(8, done=4).rate(5) > 0


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(None) as progress:
        assert progress.is_bar
        progress.update(3, total=4)
        assert progress.total == 4
    assert not Progress(4, shown=False).is_bar
