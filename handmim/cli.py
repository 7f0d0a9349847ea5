"""The command line: `handmim COMMAND key=value ...`; files in tools/ are the same commands."""

import sys
from pkgutil import resolve_name
from typing import Any, NamedTuple

import handmim
from handmim.utils.arguments import meant
from handmim.utils.entry import run_tool


class Command(NamedTuple):
    """One command; without the name of a config it parses sys.argv."""

    function: str  # of handmim, imported when it is run: --help does not wait for torch
    config: str | None
    text: str  # one line of help


COMMANDS = {
    "pretrain": Command("pipelines.train:pretrain", "pretrain", "pretrain a backbone on crops"),
    "finetune": Command("pipelines.train:finetune", "finetune", "fine-tune a MANO regression"),
    "evaluate": Command("pipelines.evaluate:evaluate", "eval", "score a checkpoint or submission"),
    "average": Command("pipelines.average:main", "average", "average weights of checkpoints"),
    "doctor": Command("check.run:doctor", "doctor", "check environment, hand model and datasets"),
    "experiments": Command("experiments.runner:main", "experiments", "fill a table of variants"),
    "quickstart": Command("experiments.quickstart:main", None, "the whole chain on rendered hands"),
    "adapt": Command("experiments.adapt:main", None, "unlabeled photos to an estimator for them"),
    "export": Command("pipelines.export:main", None, "a checkpoint as one small file to predict"),
    "pack": Command("pipelines.pack:main", None, "write a tree of images as one file of crops"),
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
        result: Any = resolve_name(f"handmim.{command.function}")(*given)
        code = result.result.exit_code if hasattr(result, "result") else result  # of a training
        return code if isinstance(code, int) else None

    run_tool(run, command.config, program=program, arguments=arguments)
