"""Programs that this process starts, and that end when it has ended, however it did."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from handmim.utils.exits import FAILED

TIED = "HANDMIM_TIED"  # in the environment of a child: its stdin ends with its parent
STARTER = "HANDMIM_STARTER"  # in the environment of a rank: id of the process that started it
POLL_S = 0.5


def start_child(command: Sequence[str], **how: Any) -> "subprocess.Popen[bytes]":
    """A started program that calls `end_with_parent`.

    Args:
        command: program and arguments.
        how: as Popen takes it, but for stdin, to which nothing is written.
    """
    how["env"] = {**how.get("env", os.environ), TIED: "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, **how)


def end_with_parent() -> None:
    """In a program of `start_child`: from now on it gets SIGTERM when the process that started it
    has ended. A process started within `starting_ranks` ends at once then. Elsewhere nothing
    happens."""
    if os.environ.pop(TIED, None):  # not for its own children
        threading.Thread(target=_wait, daemon=True).start()
    if starter := os.environ.pop(STARTER, None):
        threading.Thread(target=_follow, args=(int(starter),), daemon=True).start()


@contextmanager
def starting_ranks() -> Iterator[None]:
    """Processes that are started within end with this one, even where they wait in a library."""
    os.environ[STARTER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[STARTER]


def _follow(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(POLL_S)
    os._exit(FAILED)


def _wait() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
