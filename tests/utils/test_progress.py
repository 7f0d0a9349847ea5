import logging
import sys

from handmim.utils.progress import Progress

LOG = logging.getLogger("handmim.tests")


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
