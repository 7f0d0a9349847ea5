"""From a composed configs/experiments.yaml to a finished table, in processes of its runs: one per
run, or one of Hydra's multirun for all; and a single run of it."""

import logging
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from handmim.experiments.plan import ERROR, RESULTS, STAGES, Compose, Plan, Run, make_plan
from handmim.experiments.results import publish, write_results
from handmim.experiments.store import FORMAT, StageStore, code_state, metrics_of, record_text
from handmim.experiments.table import Table, arguments, read_table
from handmim.pipelines.preflight import path_problems, preflight
from handmim.utils.config import sentence
from handmim.utils.entry import compose
from handmim.utils.files import locked, write_atomic
from handmim.utils.processes import THREADS, of_signal, start_child

log = logging.getLogger(__name__)

FACTS = ("folder", "threads", "git_sha", "git_dirty", "commits")  # of a stage's record
NUM_SHOWN = 6  # differences of a run in a message
COMMAND = (sys.executable, "-m", "handmim", "experiments")  # makes runs
LOG = "log.txt"
POLL_S = 0.5

Launch = Callable[[Sequence[Run], Callable[[Run], None]], None]  # the second for each that ended
RunStages = Callable[[Run], dict[str, dict[str, Any]]]  # records by stage


def main(cfg: DictConfig) -> int:
    """Make the one run of `cfg.run`, or fill the table; returns the exit code."""
    if cfg.run is not None:
        make_one(cfg)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    text, code = fill_table(cfg)
    print(text)
    return code


def fill_table(cfg: DictConfig) -> tuple[str, int]:
    """Plan, run what is missing, write the table, name what failed; returns what to print, and the
    exit code."""
    preflight(cfg, names=("run_root", "out"))
    known = cache(lambda name, *values: compose(name, list(values)))  # variants share configs

    def once(name: str, values: list[str]) -> DictConfig:
        return known(name, *values)

    plan = read_plan(cfg, once)
    check_inputs(cfg, plan, once)
    if cfg.dry_run:
        return "\n".join(dry_run_lines(plan.chosen(), cfg.overwrite)), 0
    given = HydraConfig.get().overrides
    overrides = list(given.task)
    of_hydra = [o for o in given.hydra if not o.startswith("hydra.mode=")]

    def start(runs: Sequence[Run], finished: Callable[[Run], None]) -> None:
        if cfg.jobs > 1:
            launch(local_jobs(COMMAND, overrides, runs), finished, at_once=cfg.jobs)
        else:
            launch(multirun(COMMAND, [*overrides, *of_hydra], runs), finished)

    from handmim.engine.stop import Stopped, StopSignals  # they import torch

    table = plan.folder / "table.md"
    try:
        with StopSignals():
            failed = run_table(plan, start, cfg.overwrite, cfg.out and Path(cfg.out))
    except (Stopped, KeyboardInterrupt) as stop:
        code = stop.number if isinstance(stop, Stopped) else of_signal("SIGINT")
        return f"stopped; the same command continues. So far: {table}", code
    text = f"{table.read_text()}\ntable: {plan.folder}"
    if not failed:
        return text, 0
    head = f"{len(failed)} runs failed, the same command tries them again:"
    return "\n".join([text, head, *failure_lines(failed)]), 1


def read_plan(cfg: DictConfig, compose: Compose, table: Table | None = None) -> Plan:
    """All runs of a table, or of a part of it, in <run_root>/ablations/<name>, with stages in
    ablations/stages."""
    root = Path(cfg.paths.run_root).absolute() / "ablations"
    store = StageStore(root / "stages")
    return make_plan(table or read_table(cfg), root / cfg.name, compose, store)


def check_inputs(cfg: DictConfig, plan: Plan, compose: Compose) -> None:
    """Refuse, with ValueError, a table with a run that would not find its files, each named by its
    key, or whose parts refuse settings."""
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
    """Run what is chosen and not finished, stale and outdated runs only with `overwrite`; write the
    table before, in between and after, with copies in `out`. Returns runs that failed."""
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
        steps, state = run.definition.steps, run.state
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
    return "\n".join(
        [
            f"{len(runs)} finished runs have another definition than today's (- then, + now):",
            *lines,
            "make them again (overwrite=true), restore the definition, or give the new one another "
            "name (name=...)",
        ]
    )


def make_one(cfg: DictConfig) -> None:
    """Make the run `cfg.run` (VARIANT/SEED) of a table in this process."""
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


def make_run(run: Run, stages: RunStages, overwrite: bool = False) -> None:
    """Make a run unless it is finished, and write its result.json; what the stages raise is written
    to error.txt as well."""
    code = code_state()
    with locked(run.folder):
        if not run.needs_run(overwrite):
            log.info("%s: finished before, not run again", run.name)
            return
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
        import torch  # made the run, so it is loaded; plans and tables do without

        result = {
            "format": FORMAT,
            "variant": run.variant.name,
            "label": run.variant.label,
            "seed": run.seed,
            "metrics": metrics_of(records),
            "stages": {k: {fact: of.get(fact) for fact in FACTS} for k, of in records.items()},
            **run.definition._asdict(),
            **code,
            "host": platform.node(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_atomic(run.folder / RESULTS[0], record_text(result))


class Job(NamedTuple):
    """A process that makes runs."""

    command: list[str]
    runs: list[Run]
    log: Path | None = None  # for its output, with one thread; None: output of this process


def multirun(command: Sequence[str], overrides: Sequence[str], runs: Sequence[Run]) -> list[Job]:
    """All runs as one Hydra multirun, so that `hydra/launcher=...` decides where they run."""
    names = ",".join(run.name for run in runs)
    return [Job([*command, "--multirun", f"run={names}", *overrides], list(runs))]


def local_jobs(command: Sequence[str], overrides: Sequence[str], runs: Sequence[Run]) -> list[Job]:
    """A process per run with one torch thread; its output goes to log.txt."""
    own = [*command, *overrides, "machine.num_threads=1"]
    return [Job([*own, f"run={run.name}"], [run], run.folder / LOG) for run in runs]


def launch(jobs: Sequence[Job], finished: Callable[[Run], None], *, at_once: int = 1) -> None:
    """Start `at_once` jobs at a time; `finished` is called for every run soon after it ended, and
    one that fails does not stop the others."""
    waiting = list(jobs)
    before = {run.name: _time_of(run) for job in jobs for run in job.runs}
    running: dict[subprocess.Popen[bytes], Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[_start(job)] = job
            time.sleep(POLL_S)
            for process, job in list(running.items()):
                code = process.poll()
                for run in list(job.runs):
                    is_new = _time_of(run) not in (None, before[run.name])
                    if code is not None and not is_new:
                        _note_crash(run, job, code)
                    if code is not None or is_new:
                        job.runs.remove(run)
                        finished(run)
                if code is not None:
                    del running[process]
                    process.communicate()
    finally:
        _end(list(running))


def _start(job: Job) -> "subprocess.Popen[bytes]":
    if job.log is None:
        return start_child(job.command)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s: started, log in %s", job.runs[0].name, job.log)
    with job.log.open("ab") as file:
        env = os.environ | dict.fromkeys(THREADS, "1")
        return start_child(job.command, env=env, stdout=file, stderr=subprocess.STDOUT)


def _time_of(run: Run) -> int | None:
    """When the result was written, in nanoseconds; None while there is none."""
    path = run.result_file()
    return None if path is None else path.stat().st_mtime_ns


def _note_crash(run: Run, job: Job, code: int) -> None:
    """Write the error of a killed process, which could not write it itself."""
    if job.log is not None and code and not (run.folder / ERROR).is_file():
        write_atomic(run.folder / ERROR, f"ended with exit code {code}, see {LOG}\n")


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Stop what still runs after its current step, and wait: it writes a checkpoint."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        with process:  # closes its stdin and waits
            pass
