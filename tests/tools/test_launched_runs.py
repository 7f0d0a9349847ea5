"""torchrun and Slurm without machine.devices: one run of all their processes."""

import json

import pytest

from handmim.utils.processes import BAD_INPUT
from tests.engine.launched import outcome, slurm_env, start
from tests.tools.calls import PRETRAIN, REPO, TINY, call, small_data

WORDS = [*PRETRAIN, *TINY, "probe.hook=null", "collapse=null"]


@pytest.mark.slow
def test_torchrun_starts_one_run(workdir):
    arguments = [str(REPO / "tools" / "pretrain.py"), *WORDS, *small_data(workdir), "name=torchrun"]
    alone = "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"
    ((code, text),) = outcome(start([*alone, *arguments], lambda *_: {}, num=1, folder=workdir))
    assert code == 0, text[-3000:]
    assert json.loads((workdir / "runs" / "torchrun" / "run.json").read_text())["world_size"] == 2


def test_other_tools_run_as_one_process(workdir):
    for code, text in outcome(start([str(REPO / "tools" / "experiments.py")], folder=workdir)):
        assert code == BAD_INPUT
        assert "experiments.py runs as one process, but torchrun started 2" in text


@pytest.mark.slow
def test_slurm_starts_one_run(workdir):
    call(workdir, "pretrain.py", *WORDS, *small_data(workdir), "name=one")  # renders
    arguments = [str(REPO / "tools" / "pretrain.py"), *WORDS, *small_data(workdir), "name=slurm"]
    for code, text in outcome(start(arguments, slurm_env, folder=workdir)):
        assert code == 0, text[-3000:]
    assert json.loads((workdir / "runs" / "slurm" / "run.json").read_text())["world_size"] == 2
