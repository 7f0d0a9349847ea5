"""The command line: `handmim COMMAND key=value ...`; files in tools/ are the same commands."""

import sys
from collections.abc import Callable
from typing import NamedTuple

from omegaconf import DictConfig

import handmim
from handmim.utils.arguments import meant
from handmim.utils.entry import run_tool

# Functions import what they run, so that --help does not wait for torch.


def pretrain(cfg: DictConfig) -> int:
    from handmim.pipelines.pretrain import pretrain

    return pretrain(cfg).result.exit_code


def finetune(cfg: DictConfig) -> int:
    from handmim.pipelines.finetune import finetune

    return finetune(cfg).result.exit_code


def evaluate(cfg: DictConfig) -> None:
    from handmim.pipelines.evaluate import evaluate

    evaluate(cfg)


def pack() -> None:
    from handmim.pipelines.pack import main

    main()


def doctor(cfg: DictConfig) -> int:
    from handmim.pipelines.preflight import preflight

    preflight(cfg, names=("report",))
    from handmim.check.run import doctor

    return doctor(cfg)


def experiments(cfg: DictConfig) -> int:
    from handmim.experiments.runner import main

    return main(cfg)


def quickstart() -> None:
    from handmim.experiments.quickstart import main

    main()


class Command(NamedTuple):
    """One command; without the name of a config it parses sys.argv."""

    run: Callable[..., int | None]  # returns its exit code, or None where it is done
    config: str | None
    text: str  # one line of help


COMMANDS = {
    "pretrain": Command(pretrain, "pretrain", "pretrain a backbone on unlabeled hand crops"),
    "finetune": Command(finetune, "finetune", "fine-tune a MANO regression on labelled crops"),
    "evaluate": Command(evaluate, "eval", "score a checkpoint or a submission file"),
    "doctor": Command(doctor, "doctor", "check environment, hand model and datasets"),
    "experiments": Command(experiments, "experiments", "fill a table of variants over seeds"),
    "quickstart": Command(quickstart, None, "run the whole chain on rendered hands"),
    "pack": Command(pack, None, "write a tree of images as one file of crops"),
}


def main(name: str | None = None) -> None:
    """Run a command and end the process with its exit code, see `run_tool`. Without a name, the
    first argument is it."""
    program, arguments = None, sys.argv[1:]
    if name is None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_help())
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
    run_tool(command.run, command.config, program=program, arguments=arguments)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.text}" for name, command in COMMANDS.items()]
    more = "handmim COMMAND --help lists its settings and examples."
    return "\n".join(["usage: handmim COMMAND [key=value ...]", "", *lines, "", more])
