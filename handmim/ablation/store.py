"""Finished stages, kept by what they were made of: no table runs again what another has run."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from handmim.ablation.files import content_sha, files_named, read_record, record_text
from handmim.ablation.overrides import digest
from handmim.utils.files import locked, put_aside, replaced_folder, write_atomic
from handmim.utils.paths import git_state

log = logging.getLogger(__name__)

STAGE, CLOCK = "stage.json", "clock.json"
Work = Callable[[Path], dict[str, float]]


@cache
def code_state() -> dict[str, Any]:
    """Git state as this process first asked for it, before any work: the code that it has loaded
    stays that, whatever is committed meanwhile."""
    return git_state(Path(__file__).parent)


def figures_of(records: Mapping[str, dict[str, Any]]) -> dict[str, float | None]:
    """Figures of several stages as a cell names them, seconds included."""
    figures = {
        f"{stage}/{key}": value
        for stage, record in records.items()
        for key, value in record["figures"].items()
    }
    for clock in ("seconds", "cpu_seconds"):
        figures |= {f"{clock}/{stage}": record[clock] for stage, record in records.items()}
        figures[f"{clock}/total"] = sum(record[clock] for record in records.values())
    return figures


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

    def finished(self, name: str) -> dict[str, Any] | None:
        """The record of the stage in a folder of the store.

        Returns: None when it is not finished, or an input file has another content by now. A file
            that is no longer there has not changed; a stage without `inputs` counts as it is.
        """
        path = self.root / name / STAGE
        record = read_record(path) if path.is_file() else None
        return record if record is not None and self._is_current(record.get("inputs")) else None

    def get(
        self, kind: str, definition: Any, work: Work, inputs: Sequence[Path] = ()
    ) -> dict[str, Any]:
        """The record of a stage, run first when nobody has finished it.

        What was made or begun from other contents of the same files is put aside, and deleted once
        the stage is finished anew.

        Args:
            kind: of the stage, begins the folder's name.
            definition: plain containers: every setting that decides the figures.
            work: (folder) -> figures; may have been interrupted before.
            inputs: files that decide the figures, beside those that the definition names.
        Returns: figures, folder, seconds (wall and CPU, over all attempts), threads, git state, the
            commits of all attempts, digests of the input files.
        """
        code = code_state()
        folder = self.folder(kind, definition)
        with locked(folder):
            record = self.finished(folder.name)
            if record is not None:
                log.info("%s: finished before, not run again", folder.name)
                return record
            if (folder / STAGE).is_file() or not self._is_current(_begun(folder).get("inputs")):
                log.info("%s: its input files have changed, begun anew", folder.name)
                put_aside(folder)
            contents = self._contents([*files_named(definition), *inputs])
            with _attempt(folder, code, contents) as so_far:
                figures = work(folder)
            record = {
                "kind": kind,
                "folder": folder.name,
                "figures": figures,
                **so_far(),
                "threads": _torch_threads(),
                **code,
                "definition": definition,
            }
            write_atomic(folder / STAGE, record_text(record))
            shutil.rmtree(replaced_folder(folder), ignore_errors=True)
            return record

    def _contents(self, files: Sequence[Path]) -> dict[str, str]:
        """Digests by path, which is relative to the root for files of the store."""
        return {
            str(f.relative_to(self.root) if f.is_relative_to(self.root) else f): content_sha(f)
            for f in files
        }

    def _is_current(self, inputs: Mapping[str, str] | None) -> bool:
        return all(
            not (self.root / name).is_file() or content_sha(self.root / name) == sha
            for name, sha in (inputs or {}).items()
        )


def _torch_threads() -> int:
    import torch  # only what runs a stage needs it: plans and tables answer without that wait

    return torch.get_num_threads()


def _begun(folder: Path) -> dict[str, Any]:
    """What earlier attempts at a stage left: seconds, commits, inputs; empty before the first."""
    path = folder / CLOCK
    return read_record(path) if path.is_file() else {}


@contextmanager
def _attempt(
    folder: Path, code: dict[str, Any], inputs: dict[str, str]
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Seconds of all attempts, except those that were killed outright; commits of all of them."""
    before: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": 0.0, "commits": []} | _begun(folder)
    commits = [*(c for c in before["commits"] if c != code), code]
    began, cpu_began = time.perf_counter(), time.process_time()

    def now() -> dict[str, Any]:
        return {
            "seconds": before["seconds"] + time.perf_counter() - began,
            "cpu_seconds": before["cpu_seconds"] + time.process_time() - cpu_began,
            "commits": commits,
            "inputs": inputs,
        }

    write_atomic(folder / CLOCK, record_text(now()))
    try:
        yield now
    finally:
        write_atomic(folder / CLOCK, record_text(now()))
