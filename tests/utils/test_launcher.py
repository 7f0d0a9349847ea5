"""Numbers of processes from the environment of torchrun and Slurm."""

import pytest

from handmim.utils.processes import OTHERS, devices_of, launched, require_one_process
from tests.engine.launched import slurm_env, torchrun_env

SLURM = ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_JOB_NAME", "SLURM_NTASKS_PER_NODE")


@pytest.fixture
def environment(monkeypatch):
    """Sets exactly these of the variables that are read."""
    read = (*torchrun_env(0, 1), *slurm_env(0, 1), *SLURM, *OTHERS, "NODE_RANK")

    def put(**variables: str) -> None:
        for name in read:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    put()
    return put


def test_without_a_launcher_settings_stay(environment):
    assert launched() is None
    assert devices_of(3, 1) == (3, 1)
    assert devices_of("auto", 1) == ("auto", 1)
    require_one_process("ablate")


@pytest.mark.parametrize("make", [torchrun_env, slurm_env])
def test_a_launcher_fills_in_what_is_open(environment, make):
    environment(**make(0, 1, num=4))
    for devices in (1, "auto", -1, 4, "4", "0,1,2,3", [0, 1, 2, 3]):
        found, num_nodes = devices_of(devices, 1)
        assert num_nodes == 1
        assert found == (devices if devices not in (1, "auto", -1) else 4)
    for devices, num_nodes in ((2, 1), ("0,1", 1), (1, 2)):
        with pytest.raises(ValueError, match=r"machine\.devices=4 machine\.num_nodes=1"):
            devices_of(devices, num_nodes)
    with pytest.raises(ValueError, match="ablate runs as one process"):
        require_one_process("ablate")


def test_tasks_that_srun_did_not_start_are_refused(environment):
    allotted = slurm_env(0, 1)
    del allotted["SLURM_STEP_ID"]
    environment(**allotted)
    require_one_process("ablate")
    with pytest.raises(ValueError, match="put srun before the command"):
        devices_of(1, 1)
    environment(**allotted | {"SLURM_JOB_NAME": "interactive"})  # a shell of salloc
    assert devices_of(1, 1) == (1, 1)
    environment(**slurm_env(5, 1))
    with pytest.raises(ValueError, match="SLURM_PROCID='5' is no number of one of 2"):
        devices_of(1, 1)


def test_nodes_that_nothing_started_are_not_waited_for(environment):
    with pytest.raises(ValueError, match=r"num_nodes=2, .*torchrun.*machine\.num_nodes"):
        devices_of(1, 2)
    environment(NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert devices_of(1, 2) == (1, 2)


def test_nodes_are_counted(environment):
    environment(**torchrun_env(0, 1) | {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
    assert launched() == ("torchrun", 4, 2)
    environment(**slurm_env(0, 1) | {"SLURM_NTASKS": "8", "SLURM_NNODES": "2"})
    assert devices_of(1, 1) == (4, 2)
    for uneven in (
        torchrun_env(0, 1) | {"WORLD_SIZE": "7", "LOCAL_WORLD_SIZE": "4"},
        slurm_env(0, 1) | {"SLURM_NTASKS": "7", "SLURM_NNODES": "2"},
    ):
        environment(**uneven)
        with pytest.raises(ValueError, match="7 processes"):
            launched()


def test_one_task_and_interactive_steps_of_slurm_are_left_alone(environment):
    environment(**slurm_env(0, 1, num=1))
    assert devices_of(2, 1) == (2, 1)
    require_one_process("ablate")
    environment(**slurm_env(0, 1) | {"SLURM_JOB_NAME": "bash"})
    assert devices_of(1, 1) == (1, 1)


@pytest.mark.parametrize("name", OTHERS)
def test_processes_of_other_launchers_are_refused(environment, name):
    environment(**{name: "2"})
    with pytest.raises(ValueError, match=rf"{name}=2 .*put torchrun --nproc_per_node=2 before"):
        devices_of(1, 1)
    assert devices_of(2, 1) == (2, 1)
    environment(**{name: "two"})
    with pytest.raises(ValueError, match="positive integer, got 'two'"):
        devices_of(1, 1)
