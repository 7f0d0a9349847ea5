"""Finished stages and their records: no table runs again what another has run."""

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from handmim.experiments.table import digest
from handmim.utils.config import flatten
from handmim.utils.files import locked, put_aside, replaced_folder, write_atomic
from handmim.utils.json_files import read_json
from handmim.utils.paths import git_state

log = logging.getLogger(__name__)

STAGE, CLOCK = "stage.json", "clock.json"
SHA256 = "sha256"  # of a record's other fields
FORMAT = 2  # of results; 1 had other keys, and digests of configs with other names
RENAMED = {"figures": "metrics", "row": "variant"}  # keys of format 1
ADVICE = "delete the file, and what it records runs again"
Work = Callable[[Path], dict[str, float]]


def json_text(plain: Any) -> str:
    """Plain containers as JSON; numbers that are not finite become null."""
    return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"


def record_text(record: Mapping[str, Any]) -> str:
    """A record as `json_text`, with the SHA-256 of its content."""
    return json_text({**record, SHA256: digest(_finite(record), 64)})


def read_record(path: Path) -> dict[str, Any]:
    """A record of `record_text` with today's keys; one of format 1 may lack the SHA-256. ValueError
    for no object, or another content than was written."""
    try:
        record = _finite(read_json(path))
    except ValueError as error:
        raise ValueError(f"{error}: {ADVICE}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}, not an object: {ADVICE}")
    written = record.pop(SHA256, None)
    if written != digest(record, 64) and (written is not None or "format" in record):
        raise ValueError(f"{path} has another content than was written to it: {ADVICE}")
    renamed = {RENAMED.get(str(key), str(key)): value for key, value in record.items()}
    return {"format": 1, **renamed}


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _finite(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(v) for v in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def content_sha(path: Path) -> str:
    """SHA-256 of a file's content."""
    stat = path.stat()
    return _content_sha(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _content_sha(path: Path, size: int, mtime_ns: int) -> str:
    """Read once while size and time are the same: a table needs the same files for every run."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def code_state() -> dict[str, Any]:
    """Git state when this process began to work: commits made meanwhile are not what it runs."""
    return git_state(Path(__file__).parent)


def metrics_of(records: Mapping[str, dict[str, Any]]) -> dict[str, float | None]:
    """Metrics of several stages as a run names them, seconds included."""
    metrics = {
        f"{stage}/{key}": value
        for stage, record in records.items()
        for key, value in record["metrics"].items()
    }
    for clock in ("seconds", "cpu_seconds"):
        metrics |= {f"{clock}/{stage}": record[clock] for stage, record in records.items()}
        metrics[f"{clock}/total"] = sum(record[clock] for record in records.values())
    return metrics


class StageStore:
    """Folders <root>/<kind>-<hash of the definition> of all tables, each with the stage.json of a
    finished stage."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def folder(self, kind: str, definition: Any) -> Path:
        """Where a stage is, or will be."""
        return self.root / f"{kind}-{digest(definition)}"

    def finished(self, name: str) -> dict[str, Any] | None:
        """The record of the stage in a folder of the store; None when it is not finished, or an
        input file that exists has another content by now."""
        record = _read(self.root / name / STAGE)
        return record if record and self._is_current(record) else None

    def get(
        self, kind: str, definition: Any, work: Work, inputs: Sequence[Path] = ()
    ) -> dict[str, Any]:
        """The record of a stage, which runs first unless it is finished.

        Args:
            kind: begins the folder's name.
            definition: plain containers: every setting that decides the metrics.
            work: (folder) -> metrics; may have been interrupted before.
            inputs: files that decide them, beside those that the definition names. A stage of other
                contents is put aside, and deleted once this one is finished.
        """
        code, folder = code_state(), self.folder(kind, definition)
        with locked(folder):
            record = self.finished(folder.name)
            if record is not None:
                log.info("%s: finished before, not run again", folder.name)
                return record
            if (folder / STAGE).is_file() or not self._is_current(_read(folder / CLOCK)):
                log.info("%s: its input files have changed, begun anew", folder.name)
                put_aside(folder)
            named = (v for v in flatten(definition).values() if isinstance(v, str))
            files = [Path(v).absolute() for v in sorted(set(named)) if os.path.isfile(v)]
            contents = {
                str(f.relative_to(self.root) if f.is_relative_to(self.root) else f): content_sha(f)
                for f in (*files, *inputs)
            }
            before = {"seconds": 0.0, "cpu_seconds": 0.0, "commits": [], **_read(folder / CLOCK)}
            commits = [*(c for c in before["commits"] if c != code), code]
            began, cpu_began = time.perf_counter(), time.process_time()

            def so_far() -> dict[str, Any]:
                """Of all attempts, except those that were killed outright."""
                facts = {
                    "seconds": before["seconds"] + time.perf_counter() - began,
                    "cpu_seconds": before["cpu_seconds"] + time.process_time() - cpu_began,
                    "commits": commits,
                    "inputs": contents,
                }
                write_atomic(folder / CLOCK, record_text(facts))
                return facts

            so_far()
            try:
                metrics = work(folder)
            finally:
                facts = so_far()
            import torch  # slow; plans and tables do without

            record = {
                "kind": kind,
                "format": FORMAT,
                "folder": folder.name,
                "metrics": metrics,
                **facts,
                "threads": torch.get_num_threads(),
                **code,
                "definition": definition,
            }
            write_atomic(folder / STAGE, record_text(record))
            shutil.rmtree(replaced_folder(folder), ignore_errors=True)
            return record

    def _is_current(self, record: Mapping[str, Any]) -> bool:
        return all(
            not (self.root / name).is_file() or content_sha(self.root / name) == sha
            for name, sha in (record.get("inputs") or {}).items()
        )


def _read(path: Path) -> dict[str, Any]:
    """A record; empty where there is none."""
    return read_record(path) if path.is_file() else {}
