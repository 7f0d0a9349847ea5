"""Pretraining's first steps on a Python without what POSIX alone has."""

import subprocess
import sys

import pytest

from tests.tools.calls import PRETRAIN, REPO, TINY, small_data

WITHOUT = """
import os, runpy, signal, sys
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "SIGCHLD", "pthread_sigmask"):
    delattr(signal, name)
for name in ("sched_getaffinity", "fork", "killpg", "getppid", "posix_fallocate", "link"):
    delattr(os, name)
for name in ("fcntl", "resource", "termios"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_first_steps_do_without_posix(workdir):
    arguments = [*PRETRAIN, *TINY, *small_data(workdir), "probe.hook=null", "name=elsewhere"]
    arguments.append("trainer.max_steps=2")
    command = [sys.executable, "-c", WITHOUT, str(REPO / "tools" / "pretrain.py"), *arguments]
    done = subprocess.run(command, cwd=workdir, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (workdir / "runs" / "elsewhere" / "backbone.safetensors").is_file()
