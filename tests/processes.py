"""Whether a process that is no child of the tests still runs."""

import os
from pathlib import Path


def is_running(pid: int) -> bool:
    """Not, where it has ended and nobody has asked how."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:  # ended since, or a system without /proc
        return not Path("/proc/self").exists()
