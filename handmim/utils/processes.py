"""Processes: exit codes, programs that end with this one, and launchers, as Fabric knows them by
their environment. Nothing heavy is imported, since every entry point needs this."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


# Programs that this process starts.

TIED = "HANDMIM_TIED"  # in the environment of a child: its stdin ends with its parent
STARTER = "HANDMIM_STARTER"  # in the environment of a rank: id of the process that started it
POLL_S = 0.5
# Numbers of threads that libraries start in a process.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def start_child(command: Sequence[str], **how: Any) -> "subprocess.Popen[bytes]":
    """Start a program that calls `end_with_parent`; `how` as Popen takes it, but for stdin."""
    how["env"] = {**how.get("env", os.environ), TIED: "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, **how)


def end_with_parent() -> None:
    """Let a program of `start_child` get SIGTERM when the process that started it has ended, and
    one started within `starting_ranks` end at once then."""
    # Not for its own children.
    is_tied, starter = os.environ.pop(TIED, None), os.environ.pop(STARTER, None)

    def follow() -> None:
        if starter is None:
            os.read(sys.stdin.fileno(), 1)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        while os.getppid() == int(starter):
            time.sleep(POLL_S)
        os._exit(FAILED)

    if is_tied or starter:
        threading.Thread(target=follow, daemon=True).start()


@contextmanager
def starting_ranks() -> Iterator[None]:
    """Processes that are started within end with this one, even where they wait in a library."""
    os.environ[STARTER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[STARTER]


# Launchers.

OPEN = (1, "1", -1, "-1", "auto")  # values of machine.devices that leave the number to a launcher
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # of a process, as launchers say
# Numbers of processes that other launchers set. Fabric reads none of them.
OTHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")
# One of these is set wherever Fabric can know of other nodes.
OF_NODES = ("NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "LSB_JOBID", *OTHERS)


def is_first() -> bool:
    """Whether this process is the main one of its run, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def launched() -> tuple[str, int, int] | None:
    """What started this process and others, "torchrun" or "Slurm", how many per node, and on how
    many nodes; None where nothing is known. ValueError for nodes with different numbers."""
    # torchrun first, as in Fabric: it is also started inside Slurm's jobs.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        by, total, per_node = "torchrun", _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
        num_nodes = max(1, total // per_node)
    elif {"SLURM_NTASKS", "SLURM_STEP_ID"} <= os.environ.keys() and not _is_interactive():
        by, total = "Slurm", _number("SLURM_NTASKS")
        num_nodes = min(total, _number("SLURM_NNODES"))
        per_node = total // num_nodes
    else:
        return None
    if per_node * num_nodes != total:
        raise ValueError(
            f"{by} started {total} processes on {num_nodes} nodes: as many are required on each "
            "(torchrun --nproc_per_node, srun --ntasks-per-node)"
        )
    return by, per_node, num_nodes


def _is_interactive() -> bool:  # for Fabric: a shell, which nothing started beside others
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")


def _number(name: str) -> int:
    value = os.environ.get(name, "1")
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"the variable {name} must be a positive integer, got {value!r}")
    return int(value)


def devices_of(devices: Any, num_nodes: int) -> tuple[Any, int]:
    """Devices per node and number of nodes, the launcher's where the settings are open.

    Raises: ValueError for settings that the launcher contradicts, and for several processes of a
    launcher that Fabric does not know.
    """
    by, per_node, nodes = launched() or ("", 1, 1)
    if not by or (by == "Slurm" and per_node * nodes == 1):  # may start its own processes
        if num_nodes > 1 and not any(name in os.environ for name in OF_NODES):
            raise ValueError(
                f"num_nodes={num_nodes}, but nothing started this process on several nodes: start "
                f"it by torchrun --nnodes={num_nodes} or srun, or give NODE_RANK, MASTER_ADDR and "
                "MASTER_PORT on each node (machine.num_nodes)"
            )
        if not by:
            _refuse_others(devices, num_nodes)
        return devices, num_nodes
    if by == "Slurm":
        total = per_node * nodes
        if (rank := os.environ.get("SLURM_PROCID", "")) not in map(str, range(total)):
            raise ValueError(
                f"SLURM_PROCID={rank!r} is no number of one of {total} tasks: use srun"
            )
        # Fabric requires it, but srun sets it only where --ntasks-per-node was given.
        os.environ["SLURM_NTASKS_PER_NODE"] = str(per_node)
    is_open = devices in OPEN
    if not (is_open or _count(devices) == per_node) or num_nodes not in (1, nodes):
        raise ValueError(
            f"{by} started {per_node} processes on each of {nodes} nodes, got machine.devices="
            f"{devices} machine.num_nodes={num_nodes}: leave both out, or set machine.devices="
            f"{per_node} machine.num_nodes={nodes}"
        )
    return (per_node if is_open else devices), nodes


def _count(devices: Any) -> int:
    if isinstance(devices, str):
        return int(devices) if devices.isdecimal() else len(devices.strip(",").split(","))
    return devices if isinstance(devices, int) else len(devices)


def _refuse_others(devices: Any, num_nodes: int) -> None:
    # Fabric sets WORLD_SIZE too, beside NODE_RANK, once it has started processes itself.
    is_alone = devices in OPEN and num_nodes == 1 and "NODE_RANK" not in os.environ
    names = [*(OTHERS if is_alone else ()), *(() if _is_interactive() else ("SLURM_NTASKS",))]
    for name in names:
        if (total := _number(name)) > 1:
            starter = "srun" if "SLURM" in name else f"torchrun --nproc_per_node={total}"
            raise ValueError(
                f"{name}={total} is set, but each of {total} processes would train by itself: put "
                f"{starter} before the command, or unset {name} (machine.devices)"
            )


def require_one_process(name: str) -> None:
    """Refuse to run a tool in several processes, each of which would write the same files."""
    by, per_node, nodes = launched() or ("", 1, 1)
    if per_node * nodes > 1:
        raise ValueError(f"{name} runs as one process, but {by} started {per_node * nodes}")
