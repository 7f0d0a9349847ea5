"""One of two training processes whose runs end in several ways: `python -m
tests.engine.ended_worker FOLDER`. It writes <FOLDER>/rank<R>.json: how each case ended."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

from handmim.engine.checkpoint import load_checkpoint
from handmim.engine.trainer import Trainer
from handmim.utils.run import Run
from tests.engine.faulty import Faulty
from tests.engine.toy import DATA, ToyTask, collate, optimizer_config, prepare

MM = "val/pa_mpjpe_mm"
VALUES = ((5.0, 4.0, 6.0, 7.0, 8.0), (1.0, 2.0, 0.5, 0.4, 0.3))  # by rank


class After:
    """Does something after every second step, on one process."""

    at_start, every = False, 2

    def __init__(self, rank: int, act) -> None:
        self.rank, self.act = rank, act

    def __call__(self, task, info, run):
        if run.rank == self.rank and info.step == 4:
            self.act()
        return {}


class Validation(After):
    def __init__(self) -> None:
        pass

    def __call__(self, task, info, run):
        return {MM: VALUES[run.rank][info.step // 2 - 1]}


def cannot_validate() -> None:
    raise KeyError("no label")


def fill_disk() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))


def cases(run: Run, flag: Path):
    """(hooks, data, settings) by name."""
    lost = Faulty("unreadable", tuple(range(11)), flag if run.rank == 1 else Path("none"))
    signalled = After(1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    return {
        "lost mount": ([After(1, flag.touch)], lost, {}),
        "lost from the start": ([], lost, {}),
        "failed validation": ([After(1, cannot_validate)], DATA, {}),
        "signal to one": ([signalled], DATA, {"log_every": 50}),
        "best of the main process": ([Validation()], DATA, {"keep_best": "auto"}),
        "patience": ([Validation()], DATA, {"keep_best": "auto", "stop_patience": 2}),
        "full disk": ([After(0, fill_disk)], DATA, {}),  # the last case
    }


def ended(run: Run, hooks, data, settings) -> dict:
    trainer = Trainer(**{"max_steps": 10, "batch_size": 4, "log_every": 2} | settings)
    try:
        result = trainer.fit(
            run, ToyTask(), data, collate, prepare, optimizer_config(), hooks=hooks
        )
        return {"code": result.exit_code, "step": result.step, "best": result.best}
    except (RuntimeError, ValueError, KeyError, OSError) as error:  # the test names it
        return {"error": type(error).__name__, "text": str(error)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    whole = Run.start("ends", folder / "run", 0, {}, accelerator="cpu", stall_timeout_s=20.0)
    found = {}
    for name, case in cases(whole, folder / "flag").items():
        part = whole.below(name, {})
        if name == "full disk":
            no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        found[name] = ended(part, *case)
        whole.fabric.barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
    for name in found:
        last = whole.dir / name / "last.pt"
        found[name]["saved"] = load_checkpoint(last)["step"] if last.exists() else None
    (folder / f"rank{whole.rank}.json").write_text(json.dumps(found))
