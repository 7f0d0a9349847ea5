"""Processes of a campaign: started in a group of their own, marked, and ended by their marks."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

MARK = "HANDMIM_FAULTS"
# Variables that choose numbers of threads: a campaign tries what happens without them.
THREADS = re.compile(r"(OMP|MKL|OPENBLAS|NUMBA|OPENCV_FOR|NUMEXPR|VECLIB)_NUM_THREADS|OMP_.*")
REPO = Path(__file__).parents[2]
POLL_S = 0.05


class Child:
    """One call of an entry point.

    Args:
        command: script below tools/ and its arguments.
        folder: working folder; takes the output as <mark>.log.
        mark: value of the environment variable `MARK` in the child and all its children.
    """

    def __init__(self, command: Sequence[str], folder: Path, mark: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not THREADS.fullmatch(k)}
        environment = {**kept, MARK: mark, "PYTHONPATH": str(REPO), "HYDRA_FULL_ERROR": "0"}
        self.mark, self.log = mark, folder / f"{mark}.log"
        self.began = time.monotonic()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(REPO / "tools" / command[0]), *command[1:]],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    @property
    def text(self) -> str:
        """The output so far."""
        return self.log.read_text(errors="replace")

    def send(self, number: int, *, to_group: bool) -> None:
        """Send a signal to the process, or to its whole group; an ended one gets none."""
        if self.process.poll() is None:
            (os.killpg if to_group else os.kill)(self.process.pid, number)

    def wait(self, limit_s: float) -> int | None:
        """The exit code, negative for a death by signal; None for a child that had to be ended.

        Processes of the child outlive this call only where they outlive the child.
        """
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            end_marked(self.mark)
            self.process.wait()
            return None


def marked(mark: str) -> list[int]:
    """Processes that carry a mark, zombies left out."""
    found, wanted = [], f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def left_over(mark: str, patience_s: float) -> list[int]:
    """Processes that still carry a mark after so many seconds."""
    end = time.monotonic() + patience_s
    while (found := marked(mark)) and time.monotonic() < end:
        time.sleep(POLL_S)
    return found


def end_marked(mark: str) -> None:
    """Kill every process that carries a mark."""
    for pid in marked(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
