"""Processes with the environment that torchrun or Slurm gives them, on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun_env(rank: int, port: int, num: int = 2) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "ROLE_RANK": str(rank),
        "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "GROUP_WORLD_SIZE": "1",
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def slurm_env(rank: int, port: int, num: int = 2) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "hands", "SLURM_NTASKS": str(num),
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": str(rank),
        "SLURM_STEP_ID": "0", "SLURM_LOCALID": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def start(arguments: list[str], make_env=torchrun_env, num: int = 2, folder: Path | None = None):
    """Started processes by rank, each running `python ARGUMENTS...`."""
    port = free_port()
    base = os.environ | {
        "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *arguments], env=base | make_env(rank, port, num), cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(num)
    ]  # fmt: skip


def outcome(processes, timeout: float = 300) -> list[tuple[int, str]]:
    """Exit code and output of each; none is left running."""
    try:
        texts = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, text) for p, text in zip(processes, texts, strict=True)]
