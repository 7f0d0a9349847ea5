import errno
import logging
import re
import sys
from subprocess import CalledProcessError

import pytest

from handmim.utils.entry import run_tool, tool
from handmim.utils.processes import FAILED, TRAINED


@pytest.fixture
def outcome(monkeypatch, capsys):
    """(error or exit code, arguments) -> exit code and what was printed to stderr."""

    def of(what, *arguments: str):
        monkeypatch.setattr(sys, "argv", ["tools/some.py", *arguments])

        def main():
            if isinstance(what, BaseException):
                raise what
            return what

        with pytest.raises(SystemExit) as ended:
            run_tool(main)
        return ended.value.code, capsys.readouterr().err

    return of


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("num must be >= 1, got 0 (data.num)"), 2, "num must be >= 1, got 0 (data.num)"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), 2, "a.png: No such file"),
        (ValueError("two\n lines"), 2, "two; lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "last.pt"), 1, "last.pt: No space left"),
        (FloatingPointError("the loss is not finite"), 1, "the loss is not finite"),
        (KeyError(999), 1, "KeyError: 999 (traceback: "),
    ],
)
def test_an_error_is_one_message_and_its_code(outcome, error, code, said):
    got, text = outcome(error)
    assert got == code
    assert text.startswith(f"some.py: {said}")
    assert text.count("\n") == 1


def test_bad_input_in_the_middle_of_training_is_no_bad_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tools/some.py"])

    def main():
        TRAINED.set()
        raise ValueError("no figure")

    with pytest.raises(SystemExit) as ended:
        run_tool(main)
    assert ended.value.code == FAILED
    assert "no figure" in capsys.readouterr().err


def test_the_traceback_of_an_unexpected_error_is_kept(outcome):
    _, text = outcome(KeyError(999))
    path = re.search(r"traceback: (.*)\)", text)[1]
    with open(path) as file:
        assert "raise what" in file.read()


def test_debug_prints_the_traceback(outcome):
    assert "Traceback" in outcome(ValueError("x"), "debug=true")[1]


def test_the_log_of_the_run_takes_the_traceback(outcome, tmp_path):
    logger, file = logging.getLogger("handmim"), logging.FileHandler(tmp_path / "log.txt")
    before = list(logger.handlers)  # of runs of other tests
    logger.handlers[:] = [file]
    try:
        code, text = outcome(RuntimeError("odd"))
    finally:
        logger.handlers[:] = before
        file.close()
    assert code == 1
    assert text == f"some.py: RuntimeError: odd (traceback: {tmp_path / 'log.txt'})\n"
    assert "raise what" in (tmp_path / "log.txt").read_text()


def test_a_part_that_failed_has_spoken_for_itself(outcome):
    assert outcome(CalledProcessError(2, "tool")) == (2, "")


def test_an_exit_code_is_handed_on_and_none_ends_well(outcome):
    assert outcome(75) == (75, "")
    assert tool()(lambda: None)() is None
