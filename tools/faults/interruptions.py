"""Training that is killed or signalled to stop at random moments, then resumed to its end."""

import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import TimeoutExpired

import torch

from faults.children import Child, end_marked, left_over
from faults.damage import damaged
from faults.results import Result
from faults.workplace import LAST, TRAINED, Workplace, difference, partial_files

STEPS, NUM_KILLS_IN_A_CHAIN = 6, 3
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOPPED = re.compile(r"stopped after step (\d+)")
EXPORTED = "exported backbone"  # the last file of a run
PATIENCE_S = 10.0  # for loader workers to find that their process is gone
DAMAGE_SHARE = 0.3  # of kills after which last.pt is damaged where numbered copies are kept


class Reference:
    """An undisturbed run of each kind of training and interval of saving, made when needed."""

    def __init__(self, work: Workplace) -> None:
        self.work = work
        self.seconds: dict[str, float] = {}

    def command(self, kind: str, name: str, save_every: int, keeps: bool) -> list[str]:
        """The command of a run that goes on where the folder has a checkpoint."""
        command = self.work.command(kind, name, steps=STEPS, save_every=save_every)
        return [*command, "resume=auto", *([f"trainer.keep_every={save_every}"] if keeps else [])]

    def folder(self, kind: str) -> Path:
        """Folder of the undisturbed run; its seconds are kept."""
        name = f"whole-{kind}"
        if kind not in self.seconds:
            command = self.command(kind, name, 1, keeps=False)
            self.work.make(command, name)  # fills caches
            self.seconds[kind] = self.work.make(command, name).seconds
        return self.work.run_dir(name)


def kills(work: Workplace, num: int, seed: int, report: Callable[[Result], None]) -> None:
    """Kill `num` times, at most `NUM_KILLS_IN_A_CHAIN` times per run, then compare each run."""
    rng, reference, count = random.Random(seed), Reference(work), 0
    while count < num:
        kind, save_every = rng.choice(TRAINED), rng.choice((1, 2, 3))
        keeps, name = rng.random() < 0.5, f"killed-{count:04d}"
        whole = reference.folder(kind)
        command = reference.command(kind, name, save_every, keeps)
        notes: list[str] = []
        for _ in range(min(rng.randint(1, NUM_KILLS_IN_A_CHAIN), num - count)):
            count += 1
            child = work.start(command)
            notes += _kill(child, rng.uniform(0.0, 1.1 * reference.seconds[kind]))
            last = work.run_dir(name) / LAST
            copies = list(work.run_dir(name).glob("step_*.pt"))
            if keeps and copies and last.is_file() and rng.random() < DAMAGE_SHARE:
                last.write_bytes(damaged(last.read_bytes(), rng))
                notes.append("last.pt damaged")
        began = time.monotonic()
        problem = _finish(work, command, name, whole)
        row = f"{kind}, killed" + (", last.pt damaged" if "last.pt damaged" in notes else "")
        problem = problem or ", ".join(note for note in notes if note != "last.pt damaged")
        outcome = "differs" if problem else "equal"
        detail = f"{name} (save_every={save_every}): {problem}"
        report(Result(row, outcome, not problem, time.monotonic() - began, detail))
        if not problem:
            work.forget(name)


def signals(work: Workplace, num: int, seed: int, report: Callable[[Result], None]) -> None:
    """Send `num` signals to processes and to their groups; each run is resumed and compared."""
    rng, reference = random.Random(seed), Reference(work)
    for count in range(num):
        kind, name = rng.choice(TRAINED), f"signalled-{count:04d}"
        signal_name, to_group = SIGNALS[count % len(SIGNALS)], rng.random() < 0.5
        whole = reference.folder(kind)
        command = reference.command(kind, name, rng.choice((1, 3, 100)), keeps=False)
        child = work.start(command)
        time.sleep(rng.uniform(0.0, 1.1 * reference.seconds[kind]))
        child.send(int(getattr(signal, signal_name)), to_group=to_group)
        sent = child.seconds
        code = child.wait(work.limit_s)
        took = child.seconds - sent
        left = ", ".join(_live_on(child))
        problem = end_problem(child.text, code, signal_name, work.run_dir(name)) or left
        problem = problem or _finish(work, command, name, whole)
        target = "group" if to_group else "process"
        detail = f"{name}, {kind}, exit code {code}: {problem}"
        outcome = "differs" if problem else "saved, then equal"
        report(Result(f"{signal_name} to the {target}", outcome, not problem, took, detail))
        if not problem:
            work.forget(name)


def _kill(child: Child, seconds: float) -> list[str]:
    with suppress(TimeoutExpired):
        child.process.wait(seconds)
    child.send(signal.SIGKILL, to_group=False)
    child.process.wait()
    return _live_on(child)


def _live_on(child: Child) -> list[str]:
    """A note on processes that outlive their run, which end here."""
    left = left_over(child.mark, PATIENCE_S)
    end_marked(child.mark)
    return [f"processes {left} live on"] if left else []


def end_problem(text: str, code: int | None, signal_name: str, folder: Path) -> str:
    """What is wrong with the end of a run that got a signal; "" for nothing.

    Args:
        text: output of the run.
        code: its exit code, None for one that hung.
        signal_name: what it got.
        folder: of the run.
    """
    number = int(getattr(signal, signal_name))
    if code is None:
        return "hung"
    stopped = STOPPED.findall(text)
    saved = folder / LAST
    if code == 0:  # the signal came after the end
        return f"exit code 0 after {stopped[-1]} steps" if stopped else ""
    if code not in (128 + number, -number):
        return f"exit code {code}, {128 + number} is required: {text[-300:]}"
    if stopped:
        step = torch.load(saved, weights_only=True)["step"] if saved.is_file() else None
        return "" if step == int(stopped[-1]) else f"stopped after {stopped[-1]}, saved {step}"
    rows = folder / "scalars.jsonl"
    trained = rows.is_file() and rows.stat().st_size > 0
    if not trained or code > 0 or EXPORTED in text:  # nothing to lose, or the run had ended
        return ""
    return "trained and did not say where it stopped"


def _finish(work: Workplace, command: list[str], name: str, whole: Path) -> str:
    """Resume to the end and compare with the undisturbed run; "" when all is equal."""
    child = work.start(command)
    code = child.wait(work.limit_s)
    if code != 0:
        return f"resuming {'hung' if code is None else f'ended with {code}'}: {child.text[-500:]}"
    if left := partial_files(work.run_dir(name)):
        return f"partial files {left}"
    return difference(whole, work.run_dir(name))
