"""torchrun and Slurm without machine.devices: one run of all their processes."""

import json

import pytest

from handmim.utils.processes import BAD_INPUT
from tests.engine.launched import outcome, slurm_env, start
from tests.tools.calls import PRETRAIN, REPO, TINY, call, small_data

WORDS = [*PRETRAIN, *TINY, "probe=none", "collapse=none"]


@pytest.mark.slow
def test_torchrun_starts_one_run(place):
    words = [str(REPO / "tools" / "pretrain.py"), *WORDS, *small_data(place), "name=torchrun"]
    alone = "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"
    ((code, text),) = outcome(start([*alone, *words], lambda *_: {}, num=1, folder=place))
    assert code == 0, text[-3000:]
    assert json.loads((place / "runs" / "torchrun" / "run.json").read_text())["world_size"] == 2


def test_other_tools_run_as_one_process(place):
    for code, text in outcome(start([str(REPO / "tools" / "experiments.py")], folder=place)):
        assert code == BAD_INPUT
        assert "experiments.py runs as one process, but torchrun started 2" in text


@pytest.mark.slow
def test_slurm_starts_one_run(place):
    call(place, "pretrain.py", *WORDS, *small_data(place), "name=one")  # renders
    words = [str(REPO / "tools" / "pretrain.py"), *WORDS, *small_data(place), "name=slurm"]
    for code, text in outcome(start(words, slurm_env, folder=place)):
        assert code == 0, text[-3000:]
    assert json.loads((place / "runs" / "slurm" / "run.json").read_text())["world_size"] == 2
