"""From a composed configs/experiments.yaml to a finished table, and a single run of it."""

import logging
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra.conf import OverridesConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from handmim.engine.stop import Stopped, StopSignals
from handmim.experiments.launch import launch, local_jobs, multirun
from handmim.experiments.overrides import arguments
from handmim.experiments.plan import ERROR, RESULTS, STAGES, Compose, Plan, Run, make_plan
from handmim.experiments.results import publish, write_results
from handmim.experiments.store import FORMAT, StageStore, code_state, metrics_of, record_text
from handmim.experiments.table import Table, read_table
from handmim.pipelines.preflight import path_problems, preflight
from handmim.utils.config import sentence
from handmim.utils.entry import compose
from handmim.utils.files import locked, write_atomic
from handmim.utils.processes import of_signal

log = logging.getLogger(__name__)

FACTS = ("folder", "threads", "git_sha", "git_dirty", "commits")  # of a stage's record
NUM_SHOWN = 6  # differences of a run in a message

Launch = Callable[[Sequence[Run], Callable[[Run], None]], None]  # the second for each that ended
RunStages = Callable[[Run], dict[str, dict[str, Any]]]  # records by stage


def fill_table(
    cfg: DictConfig, given: OverridesConf, compose: Compose, command: Sequence[str]
) -> tuple[str, int]:
    """Plan, run what is missing, write the table, name what failed.

    Args:
        cfg: composed from configs/experiments.yaml.
        given: the user's overrides.
        compose: (config name, overrides) -> config, which is not changed.
        command: program and arguments that make one run of a table.
    Returns: what to print, and the exit code.
    Raises: ValueError for what is no table, for files that a run needs and that cannot be used, and
        for stale runs without `overwrite`.
    """
    preflight(cfg, names=("run_root", "out"))
    known = cache(lambda name, *values: compose(name, list(values)))  # variants share configs

    def once(name: str, values: list[str]) -> DictConfig:
        return known(name, *values)

    plan = read_plan(cfg, once)
    check_inputs(cfg, plan, once)
    if cfg.dry_run:
        return "\n".join(dry_run_lines(plan.chosen(), cfg.overwrite)), 0
    out = None if cfg.out is None else Path(cfg.out)
    overrides = list(given.task)
    of_hydra = [o for o in given.hydra if not o.startswith("hydra.mode=")]

    def start(runs: Sequence[Run], finished: Callable[[Run], None]) -> None:
        if cfg.jobs > 1:
            launch(local_jobs(command, overrides, runs), finished, at_once=cfg.jobs)
        else:
            launch(multirun(command, [*overrides, *of_hydra], runs), finished)

    table = plan.folder / "table.md"
    try:
        with StopSignals():
            failed = run_table(plan, start, cfg.overwrite, out)
    except (Stopped, KeyboardInterrupt) as stop:
        code = stop.number if isinstance(stop, Stopped) else of_signal("SIGINT")
        return f"stopped; the same command continues. So far: {table}", code
    text = f"{table.read_text()}\ntable: {plan.folder}"
    if not failed:
        return text, 0
    head = f"{len(failed)} runs failed, the same command tries them again:"
    return "\n".join([text, head, *failure_lines(failed)]), 1


def read_plan(cfg: DictConfig, compose: Compose, table: Table | None = None) -> Plan:
    """All runs of a table in <run_root>/ablations/<name>, with stages in ablations/stages.

    Args:
        cfg: composed from configs/experiments.yaml.
        compose: (config name, overrides) -> config.
        table: a part of that of `cfg`; None is all of it.
    """
    root = Path(cfg.paths.run_root).absolute() / "ablations"
    store = StageStore(root / "stages")
    return make_plan(table or read_table(cfg), root / cfg.name, compose, store)


def check_inputs(cfg: DictConfig, plan: Plan, compose: Compose) -> None:
    """Refuse a table with a run that would not find its files, or whose parts refuse settings.

    Raises: ValueError naming each key, its path and what is required.
    """
    todo = {run.variant.name: run.variant for run in plan.chosen() if run.needs_run(cfg.overwrite)}
    configs = [
        (variant, stage, compose(stage, arguments(getattr(variant, stage))))
        for variant in todo.values()
        for stage in STAGES
    ]
    names: dict[str, dict[str, None]] = {}  # of variants, by problem
    for variant, _, composed in configs:
        problems = path_problems(composed, parse=True)
        if variant.init_from is not None and not Path(variant.init_from).is_file():
            problems = [*problems, f"no weights at {variant.init_from} (init_from)"]
        for problem in problems:
            names.setdefault(problem, {})[variant.name] = None
    if names:
        problems = [f"{problem} (variants {', '.join(of)})" for problem, of in names.items()]
        own = path_problems(cfg, parse=True)  # the table's keys, where they name all of it
        raise ValueError("; ".join(own or problems))
    from handmim.pipelines.setup_run import try_parts, try_task  # they import torch

    for variant, stage, composed in configs:
        try:
            try_parts(composed)
            try_task(composed)
        except (ValueError, OSError) as error:
            raise ValueError(f"variant {variant.name}, {stage}: {sentence(error)}") from error


def run_table(
    plan: Plan, start: Launch, overwrite: bool = False, out: Path | None = None
) -> list[Run]:
    """Run what is chosen and not finished; the table is written before, in between and after.

    Args:
        plan: of the table.
        start: makes runs; one that fails does not stop the others.
        overwrite: make stale and outdated runs again.
        out: folder for copies of the table's files; None for none.
    Returns: runs that failed.
    Raises: ValueError for stale runs without `overwrite`.
    """
    runs = plan.chosen()
    write_results(plan, with_plots=False)
    stale = [run for run in runs if run.state == "stale"]
    if stale and not overwrite:
        raise ValueError(stale_message(stale))
    todo = [run for run in runs if run.needs_run(overwrite)]
    log.info("%s: %d of %d runs are finished", plan.table.name, len(runs) - len(todo), len(runs))

    def finished(run: Run) -> None:
        log.info("%s: %s", run.name, run.state)
        write_results(plan, with_plots=False)

    try:
        if todo:
            start(todo, finished)
    finally:
        write_results(plan)
        if out is not None:
            publish(plan.table.name, plan.folder, out)
    return [run for run in todo if run.needs_run(overwrite)]


def dry_run_lines(runs: Sequence[Run], overwrite: bool = False) -> list[str]:
    """What `run_table` would do: each run with its state and its optimizer steps by stage."""
    lines = []
    for run in runs:
        steps = run.definition.steps
        state = run.state
        if state == "finished" and run.is_outdated:
            state = "outdated"
        text = ", ".join(f"{stage} {n}" for stage, n in steps.items())
        lines.append(f"{run.name:32s} {state:9s} {sum(steps.values()):8d} steps: {text}")
    stale = [run for run in runs if run.state == "stale"]
    if stale and not overwrite:
        return [*lines, "nothing would run:", stale_message(stale)]
    left = [run for run in runs if run.needs_run(overwrite)]
    total = sum(sum(run.definition.steps.values()) for run in left)
    lines.append(
        f"{len(left)} of {len(runs)} runs to make, {total} steps; stages that other runs or tables "
        "share, or that are finished, are not run again"
    )
    return lines


def failure_lines(failed: Sequence[Run]) -> list[str]:
    """Each failed run with where to read why."""
    lines = []
    for run in failed:
        path = run.folder / ERROR
        last = path.read_text().strip().splitlines()[-1] if path.is_file() else "did not finish"
        lines.append(f"{run.name}: {last}\n    {path if path.is_file() else run.folder}")
    return lines


def stale_message(runs: Sequence[Run]) -> str:
    """What is stale, what differs, and the ways out."""
    lines = [f"  {run.name}: {'; '.join(run.differences()[:NUM_SHOWN])}" for run in runs]
    return (
        f"{len(runs)} finished runs have another definition than today's (- then, + now):\n"
        + "\n".join(lines)
        + "\nmake them again (overwrite=true), restore the definition, or give the new one another "
        "name (name=...)"
    )


def make_one(cfg: DictConfig, compose: Compose) -> None:
    """Make the run `cfg.run` (VARIANT/SEED) of a table in this process.

    Raises: ValueError for a name that is not of the table; what fails in the run.
    """
    from handmim.experiments.stages import Stages  # imports torch

    table = read_table(cfg)
    names = {f"{v.name}/{seed}": (v, seed) for v in table.variants for seed in table.seeds}
    if cfg.run not in names:
        raise ValueError(f"no run {cfg.run!r} in this table, it has {sorted(names)}")
    variant, seed = names[cfg.run]
    alone = replace(table, variants=(variant,), chosen=(variant.name,), seeds=(seed,))
    plan = read_plan(cfg, compose, alone)
    (run,) = plan.chosen()
    make_run(run, Stages(compose, plan.store).run, cfg.overwrite)


def make_run(run: Run, stages: RunStages, overwrite: bool = False) -> dict[str, Any]:
    """Make a run unless it is finished, and write its result.json, which is returned.

    Raises: ValueError for a stale run without `overwrite`; whatever the stages raise, written to
        error.txt as well.
    """
    code = code_state()
    with locked(run.folder):
        if not run.needs_run(overwrite):
            log.info("%s: finished before, not run again", run.name)
            done = run.read()
            assert done is not None
            return done
        if run.state == "stale" and not overwrite:
            raise ValueError(stale_message([run]))
        for name in (*RESULTS, ERROR):
            (run.folder / name).unlink(missing_ok=True)
        try:
            records = stages(run)
        except Exception as failure:  # notes of a traceback would stand behind the reason
            last = f"{type(failure).__name__}: {sentence(failure)}"
            write_atomic(run.folder / ERROR, f"{traceback.format_exc()}\n{last}\n")
            raise
        content = _result(run, records, code)
        write_atomic(run.folder / RESULTS[0], record_text(content))
    return content


def _result(run: Run, records: dict[str, dict[str, Any]], code: dict[str, Any]) -> dict[str, Any]:
    import torch  # made the run, so it is loaded; plans and tables do without

    return {
        "format": FORMAT,
        "variant": run.variant.name,
        "label": run.variant.label,
        "seed": run.seed,
        "config_sha": run.definition.config_sha,
        "metrics": metrics_of(records),
        "steps": run.definition.steps,
        "stages": {
            stage: {key: record.get(key) for key in FACTS} for stage, record in records.items()
        },
        "overrides": run.definition.overrides,
        **code,
        "host": platform.node(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def main(cfg: DictConfig) -> int:
    """Make the one run of `cfg.run`, or fill the table; returns the exit code."""
    if cfg.run is not None:
        make_one(cfg, compose)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    command = [sys.executable, "-m", "handmim", "experiments"]
    text, code = fill_table(cfg, HydraConfig.get().overrides, compose, command)
    print(text)
    return code
