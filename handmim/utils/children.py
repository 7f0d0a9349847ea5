"""Programs that this process starts, and that end when it has ended, however it did."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

TIED = "HANDMIM_TIED"  # in the environment of a child: its stdin ends with its parent


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
    has ended. Elsewhere nothing happens."""
    if os.environ.pop(TIED, None):  # not for its own children
        threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
