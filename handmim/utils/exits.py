"""Exit codes of the entry points: a script can tell a finished run from one that was stopped."""

import signal
import threading

DONE = 0
FAILED = 1  # an error of the program or after training began, or collapse detection
BAD_INPUT = 2  # a config value, a file or a folder that cannot be used; nothing was trained
STOPPED = 75  # ended early on request (trainer.stop_after); resume=auto goes on
STALLED = 74  # nothing moved within machine.stall_timeout_s

# What is lost, or not, by an end without a save.
GOES_ON = "resume=auto goes on from the last checkpoint, or begins anew where there is none"

# Set once this process has made a training step: no error is BAD_INPUT any more.
TRAINED = threading.Event()


class StalledError(RuntimeError):
    """Something was waited for longer than machine.stall_timeout_s allows."""


def of_signal(name: str) -> int:
    """Exit code of a run that a signal stopped, as shells give it: 143 for SIGTERM."""
    return 128 + int(getattr(signal, name))
