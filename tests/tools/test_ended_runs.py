"""Signals to the process group and starts of one name, as schedulers and users make them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from handmim.engine.checkpoint import load_checkpoint
from tests.tools.calls import PRETRAIN, REPO, TINY, small_data

WORDS = [*PRETRAIN, *TINY, "probe.hook=null", "trainer.max_steps=300", "trainer.num_workers=2"]


def started(workdir, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(REPO / "tools" / "pretrain.py"), *WORDS, *small_data(workdir)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments], cwd=workdir, start_new_session=True, **pipes)


def wait_for(path, process, limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not path.exists():
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR2"])
def test_a_signal_to_the_group_saves_and_the_run_goes_on_bit_for_bit(workdir, name):
    folder = workdir / "runs" / f"group_{name}"
    with started(workdir, f"name={folder.name}") as process:
        wait_for(folder / "last.pt", process)
        os.killpg(process.pid, getattr(signal, name))
        text = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + getattr(signal, name), text[-3000:]
    step = load_checkpoint(folder / "last.pt")["step"]
    assert f"stopped after step {step}" in text
    assert not (folder / "backbone.safetensors").exists()
    ends = []
    for arguments in (["resume=auto"], ["name=straight"]):
        stop = f"trainer.stop_after={2 if arguments == ['resume=auto'] else step + 2}"
        with started(workdir, f"name={folder.name}", stop, "overwrite=true", *arguments) as process:
            process.communicate(timeout=200)
        run = folder if arguments == ["resume=auto"] else workdir / "runs" / "straight"
        ends.append(load_checkpoint(run / "last.pt"))
    assert [end["step"] for end in ends] == [step + 2, step + 2]
    assert all(torch.equal(v, ends[1]["task"][k]) for k, v in ends[0]["task"].items())


TWIN = ("name=twin", "trainer.max_steps=100000")


@pytest.mark.slow
def test_two_starts_of_one_name_one_trains_and_one_is_told(workdir):
    with started(workdir, *TWIN) as first:
        wait_for(workdir / "runs" / "twin" / "last.pt", first)
        for arguments in ([], ["resume=auto"], ["overwrite=true"]):
            with started(workdir, *TWIN, *arguments) as second:
                text = second.communicate(timeout=100)[0]
            assert second.returncode not in (0, None)
            assert f"is being written by process {first.pid}" in text
        first.send_signal(signal.SIGKILL)
        first.wait()
    with started(workdir, *TWIN, "resume=auto", "trainer.stop_after=1") as third:
        third.communicate(timeout=100)
    assert third.returncode == 75, "a dead owner holds nothing"
