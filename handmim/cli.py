"""The command line: `handmim COMMAND key=value ...`; files in tools/ are the same commands."""

import sys
from pkgutil import resolve_name
from typing import Any, NamedTuple

import handmim
from handmim.utils.arguments import meant
from handmim.utils.entry import run_tool


class Command(NamedTuple):
    """One command; without the name of a config it parses sys.argv."""

    function: str  # imported when it is run: --help does not wait for torch
    config: str | None
    text: str  # one line of help


COMMANDS = {
    "pretrain": Command(
        "handmim.pipelines.pretrain:pretrain", "pretrain", "pretrain a backbone on unlabeled crops"
    ),
    "finetune": Command(
        "handmim.pipelines.finetune:finetune", "finetune", "fine-tune a MANO regression on labels"
    ),
    "evaluate": Command(
        "handmim.pipelines.evaluate:evaluate", "eval", "score a checkpoint or a submission file"
    ),
    "doctor": Command(
        "handmim.check.run:doctor", "doctor", "check environment, hand model and datasets"
    ),
    "experiments": Command(
        "handmim.experiments.runner:main", "experiments", "fill a table of variants over seeds"
    ),
    "quickstart": Command(
        "handmim.experiments.quickstart:main", None, "run the whole chain on rendered hands"
    ),
    "pack": Command(
        "handmim.pipelines.pack:main", None, "write a tree of images as one file of crops"
    ),
}


def main(name: str | None = None) -> None:
    """Run a command and end the process with its exit code, see `run_tool`. Without a name, the
    first argument is it."""
    program, arguments = None, sys.argv[1:]
    if name is None:
        if not arguments or arguments[0] in ("-h", "--help"):
            lines = [f"  {each:<11}  {command.text}" for each, command in COMMANDS.items()]
            print("usage: handmim COMMAND [key=value ...]", "", *lines, sep="\n")
            print("\nhandmim COMMAND --help lists its settings and examples.")
            return
        if arguments[0] == "--version":
            print(handmim.__version__)
            return
        name, *arguments = arguments
        program = f"handmim {name}"
    if name not in COMMANDS:
        sys.stderr.write(f"handmim: no command {name!r}{meant(name, COMMANDS)} (handmim --help)\n")
        sys.exit(2)
    command = COMMANDS[name]

    def run(*given: Any) -> int | None:
        result: Any = resolve_name(command.function)(*given)
        code = result.result.exit_code if hasattr(result, "result") else result  # of a training
        return code if isinstance(code, int) else None

    run_tool(run, command.config, program=program, arguments=arguments)
