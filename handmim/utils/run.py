"""A run: its machine, its folder, its log. Nothing in a run folder is lost or half-written."""

import json
import logging
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torchvision
import yaml
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from rich.logging import RichHandler

import handmim
from handmim.utils.arguments import one_of
from handmim.utils.files import (
    FolderBusyError,
    FolderLock,
    lock_folder,
    put_aside,
    replaced_folder,
    write_atomic,
)
from handmim.utils.paths import git_state
from handmim.utils.processes import devices_of, starting_ranks
from handmim.utils.ranks import any_of_ranks, objects_of_ranks, portable
from handmim.utils.seed import seed_everything

TIME = "%H:%M:%S"
MARGIN = 1.5  # of the time that processes wait for each other, relative to `stall_timeout_s`
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "32", "16", "bf16")
RESULTS = ("*.pt", "*.safetensors", "scalars.jsonl", "metrics.json")  # nothing replaces them


def open_folder(folder: Path, resume: str, overwrite: bool) -> FolderLock:
    """Create and lock the run folder. Raises: FileExistsError for a folder that another process
    writes, or that holds a run."""
    try:
        lock = lock_folder(folder)
    except FolderBusyError as error:
        wait = "wait for its end, or take another name (name=...)"
        raise FileExistsError(f"{error}: {wait}") from None
    if (last := folder / "last.pt").is_dir():
        raise ValueError(f"{last} is a folder, where a checkpoint has to be written: remove it")
    # A start that failed before its first result is nothing to protect.
    if any(path.is_file() for name in RESULTS for path in folder.glob(name)):
        if overwrite and resume == "never":
            put_aside(folder)
        elif resume == "never" or (resume != "auto" and Path(resume).parent.resolve() != folder):
            raise FileExistsError(
                f"{folder} already holds a run: go on with it (resume=auto), take another name "
                "(name=...), or replace it (overwrite=true)"
            )
    return lock


def start_log(folder: Path | None) -> None:
    """Log to the terminal and to log.txt of the folder; None, on other ranks, is quiet."""
    root = logging.getLogger("handmim")
    root.setLevel(logging.INFO if folder is not None else logging.WARNING)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    if folder is not None:
        terminal: logging.Handler = logging.StreamHandler()
        terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", TIME))
        if sys.stderr.isatty():
            terminal = RichHandler(show_path=False, log_time_format=TIME)
        root.addHandler(terminal)
        file = logging.FileHandler(folder / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        root.addHandler(file)
    root.propagate = False
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


def precision_in_force(fabric: Fabric) -> str:
    """The precision that is worked in, "32-true" or such: a CPU, for one, turns 16-mixed into
    bf16-mixed."""
    return str(fabric._precision.precision)


@dataclass
class Run:
    """What every entry point needs: devices, folder, seed, log; and of this process its device, its
    rank, the number of all, and whether it is the one that writes."""

    name: str
    dir: Path
    seed: int
    config: dict[str, Any]
    fabric: Fabric
    log: logging.Logger
    precision: str = "32-true"  # in force, as Fabric names it
    compile: bool = False  # let torch.compile fuse what can be
    stall_timeout_s: float | None = None  # how long it may stand still, see engine.workers
    lock: FolderLock | None = None  # keeps others out of the folder as long as the run lives
    hosts: Any = None  # group of processes that agree without waiting for their devices

    @classmethod
    def start(
        cls,
        name: str,
        run_dir: str | Path,
        seed: int,
        config: Any,
        *,
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        num_threads: int | None = None,
        compile: bool = False,
        stall_timeout_s: float | None = None,
        resume: str = "never",
        overwrite: bool = False,
        before_folder: Callable[[], object] | None = None,
    ) -> "Run":
        """Launch processes or join those of a launcher, make the folder, record what is being run.
        Accelerator to precision are Lightning Fabric's; one device of one node is what torchrun or
        Slurm started. `config` is resolved, `compile` is for those who build networks,
        `before_folder` is called under the run's seed: what it raises leaves no folder behind.
        Raises: ValueError for devices that contradict the launcher; what `open_folder` raises."""
        if stall_timeout_s is not None and not 0 < stall_timeout_s < float("inf"):
            raise ValueError(f"stall_timeout_s must be > 0 or null, got {stall_timeout_s}")
        one_of("precision", precision, PRECISIONS)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        folder = Path(run_dir).absolute()
        devices, num_nodes = devices_of(devices, num_nodes)
        machine: dict[str, Any] = {"accelerator": accelerator, "devices": devices}
        machine |= {"num_nodes": num_nodes, "strategy": strategy, "precision": precision}
        try:
            fabric = Fabric(**machine)
        except (TypeError, ValueError, RuntimeError, ImportError) as error:
            named = ", ".join(f"machine.{key}={value}" for key, value in machine.items())
            raise ValueError(f"{error} ({named})") from error
        # Beyond the watchdog's, which says more; this one also holds before it starts.
        limit = None if stall_timeout_s is None else timedelta(seconds=MARGIN * stall_timeout_s)
        if limit is not None and isinstance(fabric.strategy, DDPStrategy):
            fabric.strategy._timeout = limit
        with starting_ranks():
            fabric.launch()
        hosts = None
        if fabric.world_size > 1 and dist.get_backend() != "gloo":
            hosts = dist.new_group(backend="gloo", timeout=limit)
        seed_everything(seed)
        if before_folder is not None:
            before_folder()
        lock = open_folder(folder, resume, overwrite) if fabric.is_global_zero else None
        fabric.barrier()
        start_log(folder if fabric.is_global_zero else None)
        log = logging.getLogger("handmim.run")
        more = (precision_in_force(fabric), compile, stall_timeout_s, lock, hosts)
        run = cls(name, folder, seed, config, fabric, log, *more)
        if resume == "never":
            run.write_start()
        where = f"{run.device.type} x {run.world_size}, {run.precision}"
        text = "run %s: %s, %d torch threads, seed %d, folder %s"
        log.info(text, name, where, torch.get_num_threads(), seed, folder)
        return run

    def write_start(self) -> None:
        """Record config and facts of this start; one that resumes does so once that is allowed."""
        if self.is_main:
            write_atomic(self.dir / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
            self.write_json("run.json", self.facts())

    def below(self, name: str, config: Any) -> "Run":
        """A part of this run in a folder of its own below, with a config.yaml: same machine, same
        log."""
        folder = self.dir / name
        part = replace(self, name=f"{self.name}/{name}", dir=folder, config=config)
        if self.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return part

    def discard_replaced(self) -> None:
        """Delete the run that this one overwrites; called once there is a first result."""
        if self.is_main:
            shutil.rmtree(replaced_folder(self.dir), ignore_errors=True)

    def facts(self) -> dict[str, Any]:
        """Where, when and with what this run was started."""
        device = torch.cuda.get_device_name(0) if self.device.type == "cuda" else platform.machine()
        return {
            "name": self.name,
            "seed": self.seed,
            **git_state(Path(__file__).parent),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "host": socket.gethostname(),
            "cores": os.cpu_count(),
            "device": device,
            "world_size": self.world_size,
            "torch_threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{part.__name__: part.__version__ for part in (torch, torchvision, timm, handmim)},
        }

    def __post_init__(self) -> None:
        self.device = self.fabric.device
        self.rank, self.world_size = self.fabric.global_rank, self.fabric.world_size
        self.is_main = self.fabric.is_global_zero  # in the one process that writes
        # Whether a flag is up on any process; all of them have to ask.
        self.any_rank = bool if self.world_size == 1 else partial(any_of_ranks, group=self.hosts)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one process raises within, all of them raise at its end; all have to enter."""
        try:
            yield
        except Exception as error:
            self._first_error(portable(error))
            raise
        if (other := self._first_error(None)) is not None:
            raise other

    def _first_error(self, error: Exception | None) -> Exception | None:
        failed = self.any_rank(error is not None)
        return next(filter(None, objects_of_ranks(error)), None) if failed else None

    def record(self, name: str, what: Any) -> None:
        """Add a fact to run.json; the main process does. A disk that does not take it is an error
        of the log alone."""
        if self.is_main:
            try:
                facts = json.loads((self.dir / "run.json").read_text())
            except (OSError, ValueError):  # removed or damaged since the start
                facts = self.facts()
            try:
                self.write_json("run.json", facts | {name: what})
            except OSError as error:
                self.log.error("run.json lacks %s: %s", name, error)

    def write_json(self, name: str, obj: Any) -> Path:
        """Write a JSON file of the run folder whole or not at all; the main process does."""
        path = self.dir / name
        if self.is_main:
            write_atomic(path, json.dumps(obj, indent=2) + "\n")
        return path
