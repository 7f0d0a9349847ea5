"""Finished stages, kept by what they were made of: no table runs again what another has run."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from handmim.ablation.overrides import digest
from handmim.utils.run import git_state, write_atomic

log = logging.getLogger(__name__)

STAGE, CLOCK, LOCK = "stage.json", "clock.json", ".lock"
Work = Callable[[Path], dict[str, float]]


class StageStore:
    """Folders <root>/<kind>-<hash of the definition>, each with the stage.json of a finished stage.

    Args:
        root: of all stages of all tables.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def folder(self, kind: str, definition: Any) -> Path:
        """Where a stage is, or will be."""
        return self.root / f"{kind}-{digest(definition)}"

    def get(self, kind: str, definition: Any, work: Work) -> dict[str, Any]:
        """The record of a stage, run first when nobody has finished it.

        Args:
            kind: of the stage, begins the folder's name.
            definition: plain containers: everything that decides the figures.
            work: (folder) -> figures; may have been interrupted before.
        Returns: figures, folder, seconds (wall and CPU, over all attempts), threads, git state.
        """
        folder = self.folder(kind, definition)
        with locked(folder):
            done = folder / STAGE
            if done.is_file():
                log.info("%s: finished before, not run again", folder.name)
                return json.loads(done.read_text())
            with _clock(folder / CLOCK) as seconds:
                figures = work(folder)
            record = {
                "kind": kind,
                "folder": folder.name,
                "figures": figures,
                **seconds(),
                "threads": torch.get_num_threads(),
                **git_state(Path(__file__).parent),
                "definition": definition,
            }
            write_atomic(done, json.dumps(record, indent=1) + "\n")
            return record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in a folder; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log.warning("%s is being worked on by process %s: waiting", folder, file.read().strip())
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def _clock(path: Path) -> Iterator[Callable[[], dict[str, float]]]:
    """Seconds of all attempts, except those that were killed outright."""
    before = (
        json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0, "cpu_seconds": 0.0}
    )
    began, cpu_began = time.perf_counter(), time.process_time()

    def now() -> dict[str, float]:
        return {
            "seconds": before["seconds"] + time.perf_counter() - began,
            "cpu_seconds": before["cpu_seconds"] + time.process_time() - cpu_began,
        }

    try:
        yield now
    finally:
        write_atomic(path, json.dumps(now()))
