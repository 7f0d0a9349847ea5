"""The runs of a table, their states and records, and the stages that all tables share."""

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from handmim.experiments.table import (
    STAGES,
    Definition,
    Table,
    Variant,
    arguments,
    deciding_items,
    decisive,
    definition_of,
    digest,
)
from handmim.utils.config import flatten, sentence
from handmim.utils.files import locked, put_aside, replaced_folder, write_atomic
from handmim.utils.json_files import read_object
from handmim.utils.paths import git_state

log = logging.getLogger(__name__)

STAGE, CLOCK = "stage.json", "clock.json"
SHA256 = "sha256"  # of a record's other fields
FORMAT = 2  # of results; 1 had other keys, and digests of configs with other names
RENAMED = {"figures": "metrics", "row": "variant"}  # keys of format 1
ADVICE = "delete the file, and what it records runs again"
RESULTS = ("result.json", "cell.json")  # the second is of format 1
ERROR = "error.txt"
NUM_SHOWN = 6  # differences of a run in a message
SEED_FOLDER = re.compile(r"seed_(-?\d+)")

Compose = Callable[[str, list[str]], DictConfig]
Work = Callable[[Path], dict[str, float]]


def json_text(plain: Any) -> str:
    """Plain containers as JSON; numbers that are not finite become null."""
    return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"


def record_text(record: Mapping[str, Any]) -> str:
    """A record as `json_text`, with the SHA-256 of its content."""
    return json_text({**record, SHA256: digest(_finite(record), 64)})


def read_record(path: Path) -> dict[str, Any]:
    """A record of `record_text` with today's keys, empty where there is none; one of format 1 may
    lack the SHA-256. ValueError for no object, or another content than was written."""
    if not path.is_file():
        return {}
    try:
        record = _finite(read_object(path))
    except ValueError as error:
        raise ValueError(f"{error}: {ADVICE}") from error
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
    return sha256(path.read_bytes()).hexdigest()


@cache
def code_state() -> dict[str, Any]:
    """Git state when this process began to work: commits made meanwhile are not what it runs."""
    return git_state(Path(__file__).parent)


def metrics_of(records: Mapping[str, dict[str, Any]]) -> dict[str, float | None]:
    """Metrics of several stages as a run names them, seconds included."""
    metrics = {f"{stage}/{k}": v for stage, of in records.items() for k, v in of["metrics"].items()}
    for clock in ("seconds", "cpu_seconds"):
        metrics |= {f"{clock}/{stage}": record[clock] for stage, record in records.items()}
        metrics[f"{clock}/total"] = sum(record[clock] for record in records.values())
    return metrics


class StageStore:
    """Folders <root>/<kind>-<hash of the definition>, with stage.json when they are finished."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def folder(self, kind: str, definition: Any) -> Path:
        """Where a stage is, or will be."""
        return self.root / f"{kind}-{digest(definition)}"

    def finished(self, name: str) -> dict[str, Any] | None:
        """The record of a stage by its folder; None before, or if an input file has changed."""
        record = read_record(self.root / name / STAGE)
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
            if (folder / STAGE).is_file() or not self._is_current(read_record(folder / CLOCK)):
                log.info("%s: its input files have changed, begun anew", folder.name)
                put_aside(folder)
            named = (v for v in flatten(definition).values() if isinstance(v, str))
            files = [Path(v).absolute() for v in sorted(set(named)) if os.path.isfile(v)]
            contents = {
                str(f.relative_to(self.root) if f.is_relative_to(self.root) else f): content_sha(f)
                for f in (*files, *inputs)
            }
            before = {
                "seconds": 0.0,
                "cpu_seconds": 0.0,
                "commits": [],
                **read_record(folder / CLOCK),
            }
            commits = [*(c for c in before["commits"] if c != code), code]
            began = time.perf_counter() - before["seconds"]
            cpu_began = time.process_time() - before["cpu_seconds"]

            def so_far() -> dict[str, Any]:
                """Of all attempts, except those that were killed outright."""
                facts = {
                    "seconds": time.perf_counter() - began,
                    "cpu_seconds": time.process_time() - cpu_began,
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


@dataclass(frozen=True, slots=True)
class Run:
    """One variant with one seed, which pretraining, choice of labels and fine-tuning share."""

    variant: Variant
    seed: int
    folder: Path  # holds result.json, or error.txt
    store: StageStore
    definition: Definition

    @property
    def name(self) -> str:
        """As `run=` takes it."""
        return f"{self.variant.name}/{self.seed}"

    def result_file(self) -> Path | None:
        """The written result, perhaps of format 1; None before."""
        paths = (self.folder / name for name in RESULTS)
        return next((path for path in paths if path.is_file()), None)

    def read(self) -> dict[str, Any]:
        """The result as written, whatever its definition was; empty before."""
        path = self.result_file()
        return read_record(path) if path else {}

    def differences(self) -> list[str]:
        """What a finished run was made with and is no longer requested (-), and the reverse (+);
        empty where other overrides compose to the same configs, and for an older format."""
        done = self.read()
        if not done or done["format"] != FORMAT:
            return []
        is_same = done["config_sha"] == self.definition.config_sha
        old, new = (
            deciding_items(d, is_same) for d in (done["overrides"], self.definition.overrides)
        )
        return [*(f"-{i}" for i in sorted(old - new)), *(f"+{i}" for i in sorted(new - old))]

    @property
    def is_outdated(self) -> bool:
        """Finished, but under other defaults in configs/, or in an older format."""
        done, now = self.read(), (FORMAT, self.definition.config_sha)
        return bool(done) and (done["format"], done.get("config_sha")) != now

    @property
    def state(self) -> str:
        """`stale` with differences; `finished` while its stages exist and hold its metrics;
        `failed` after an error; else `open`."""
        if done := self.read():
            if self.differences():
                return "stale"
            found = [(k, self.store.finished(of["folder"])) for k, of in done["stages"].items()]
            if metrics_of({k: record for k, record in found if record}) == done["metrics"]:
                return "finished"
        return "failed" if (self.folder / ERROR).is_file() else "open"

    def needs_run(self, overwrite: bool) -> bool:
        """Whether there is anything to do; `overwrite` makes outdated runs again."""
        return self.state != "finished" or (overwrite and self.is_outdated)


class Plan:
    """The runs of a table. Raises: ValueError naming a variant whose overrides do not compose."""

    def __init__(self, table: Table, folder: Path, compose: Compose, store: StageStore) -> None:
        self.table, self.folder, self.store = table, folder, store
        composed = cache(lambda stage, *words: compose(stage, list(words)))  # many are shared
        self.configs: dict[str, dict[str, DictConfig]] = {}  # by variant and stage
        self.definitions: dict[str, Definition] = {}
        for variant in table.variants:
            configs, content = {}, {}
            for stage in STAGES:
                try:
                    cfg = composed(stage, *arguments(getattr(variant, stage)))
                    if (patience := cfg.trainer.get("stop_patience")) is not None:
                        why = f"stop_patience={patience}, but a table gives every run its whole"
                        raise ValueError(f"{why} length: trainer.stop_patience=null")
                    configs[stage], content[stage] = cfg, decisive(cfg)
                except Exception as error:  # hydra's and omegaconf's have no common base
                    text = f"variant {variant.name} does not compose for {stage}: {sentence(error)}"
                    given = f"(overrides of all variants: '{stage}={{KEY: VALUE}}')"
                    raise ValueError(f"{text} {given}") from error
            self.configs[variant.name] = configs
            self.definitions[variant.name] = definition_of(table, variant, configs, content)

    def _run(self, variant: Variant, seed: int) -> Run:
        folder = self.folder / variant.name / f"seed_{seed}"
        return Run(variant, seed, folder, self.store, self.definitions[variant.name])

    def chosen(self) -> list[Run]:
        """Runs that are requested, seed by seed: early ones already make a whole table."""
        variants = [v for v in self.table.variants if v.name in self.table.chosen]
        return [self._run(variant, seed) for seed in self.table.seeds for variant in variants]

    def shown(self) -> list[Run]:
        """The chosen runs and all other finished ones of the table, seed by seed."""
        runs = []
        for variant in self.table.variants:
            chosen = set(self.table.seeds) if variant.name in self.table.chosen else set()
            files = [f for n in RESULTS for f in (self.folder / variant.name).glob(f"*/{n}")]
            found = [SEED_FOLDER.fullmatch(file.parent.name) for file in files]
            for seed in chosen | {int(match[1]) for match in found if match}:
                run = self._run(variant, seed)
                if seed in chosen or run.state == "finished":
                    runs.append(run)
        return sorted(runs, key=lambda run: run.seed)


def stale_message(runs: Sequence[Run], overwrite: bool) -> str:
    """What is stale, what differs, and the ways out; "" where nothing is, or with `overwrite`."""
    stale = [] if overwrite else [run for run in runs if run.state == "stale"]
    lines = [f"  {run.name}: {'; '.join(run.differences()[:NUM_SHOWN])}\n" for run in stale]
    if not stale:
        return ""
    return (
        f"{len(stale)} finished runs have another definition than today's (- then, + now):\n"
        f"{''.join(lines)}make them again (overwrite=true), restore the definition, or give the "
        "new one another name (name=...)"
    )
