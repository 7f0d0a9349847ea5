import sys
from pathlib import Path

import pytest

from handmim.cli import COMMANDS, main

REPO = Path(__file__).parent.parent


@pytest.fixture
def typed(monkeypatch, capsys):
    """Arguments -> exit code and what was printed."""

    def of(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/handmim", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return of


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(typed, arguments):
    code, text = typed(*arguments)
    assert code == 0
    assert all(f"\n  {name}" in text for name in COMMANDS)


def test_an_unknown_command_is_named_with_what_was_meant(typed):
    code, text = typed("pretain", "data=x")
    assert (code, text) == (
        2, "handmim: no command 'pretain', did you mean pretrain? (handmim --help)\n",
    )  # fmt: skip


def test_a_command_is_named_in_its_errors(typed):
    code, text = typed("finetune", "trainer.max_step=3")
    assert code == 2
    assert text.startswith("handmim finetune: no such setting: trainer.max_step, did you mean")
    code, text = typed("pack", "--no-such")
    assert code == 2
    assert "usage: handmim pack" in text


def test_commands_take_configs_that_are_there():
    for command in COMMANDS.values():
        assert command.config is None or (REPO / "configs" / f"{command.config}.yaml").is_file()
