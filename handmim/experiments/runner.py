"""From a composed configs/experiments.yaml to a finished table, or to a single run of it."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from handmim.experiments.results import publish, write_results
from handmim.experiments.runs import ERROR, Plan, Run, StageStore, stale_message
from handmim.experiments.table import Table, read_table
from handmim.pipelines.preflight import path_problems, preflight
from handmim.utils.config import build, drop_unbuilt, sentence
from handmim.utils.entry import compose
from handmim.utils.files import write_atomic
from handmim.utils.processes import THREADS, of_signal, start_child

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "handmim", "experiments")  # makes runs
LOG = "log.txt"
POLL_S = 0.5

Launch = Callable[[Sequence[Run], Callable[[Run], None]], None]  # the second for each that ended


def main(cfg: DictConfig) -> int:
    """Make the one run of `cfg.run`, or fill the table and name what failed; the exit code."""
    if cfg.run is not None:
        make_one(cfg)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    preflight(cfg, names=("run_root", "out"))
    plan = read_plan(cfg)
    check_inputs(cfg, plan)
    if cfg.dry_run:
        print(*dry_run_lines(plan.chosen(), cfg.overwrite), sep="\n")
        return 0
    given = HydraConfig.get().overrides
    overrides = list(given.task)
    if cfg.jobs == 1:
        overrides += [o for o in given.hydra if not o.startswith("hydra.mode=")]

    from handmim.engine.workers import Stopped, StopSignals  # they import torch

    start = partial(launch, overrides=overrides, at_once=cfg.jobs)
    table = plan.folder / "table.md"
    try:
        with StopSignals():
            failed = run_table(plan, start, cfg.overwrite, cfg.out and Path(cfg.out))
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"stopped; the same command continues. So far: {table}")
        return stop.code if isinstance(stop, Stopped) else of_signal("SIGINT")
    print(f"{table.read_text()}\ntable: {plan.folder}")
    if failed:
        head = f"{len(failed)} runs failed, the same command tries them again:"
        print(head, *failure_lines(failed), sep="\n")
    return int(bool(failed))


def read_plan(cfg: DictConfig, table: Table | None = None) -> Plan:
    """All runs of a table, or of a part, in <run_root>/ablations: <name>, and stages for all."""
    root = Path(cfg.paths.run_root).absolute() / "ablations"
    return Plan(table or read_table(cfg), root / cfg.name, compose, StageStore(root / "stages"))


def check_inputs(cfg: DictConfig, plan: Plan) -> None:
    """Refuse, with ValueError, a table with a run that would not find its files, each named by its
    key, or whose parts refuse settings."""
    todo = {run.variant.name: run.variant for run in plan.chosen() if run.needs_run(cfg.overwrite)}
    configs = [(v, *item) for v in todo.values() for item in plan.configs[v.name].items()]
    names: dict[str, list[str]] = defaultdict(list)  # of variants, by problem
    for variant, _, composed in configs:
        for problem in path_problems(composed, parse=True):
            names[problem].append(variant.name)
        if variant.init_from is not None and not Path(variant.init_from).is_file():
            names[f"no weights at {variant.init_from} (init_from)"].append(variant.name)
    if names:
        own = path_problems(cfg, parse=True)  # the table's keys, where they name all of it
        lists = {problem: ", ".join(dict.fromkeys(of)) for problem, of in names.items()}
        found = [f"{problem} (variants {those})" for problem, those in lists.items()]
        raise ValueError("; ".join(own or found))
    from handmim.pipelines.train import try_parts  # it imports torch

    for variant, stage, composed in configs:
        try:
            try_parts(composed)
            drop_unbuilt(task := composed.task.copy())
            build(task)
        except (ValueError, OSError) as error:
            raise ValueError(f"variant {variant.name}, {stage}: {sentence(error)}") from error


def run_table(
    plan: Plan, start: Launch, overwrite: bool = False, out: Path | None = None
) -> list[Run]:
    """Run what is chosen and not finished, stale and outdated runs only with `overwrite`; write the
    table before, in between and after, with copies in `out`. Returns runs that failed."""
    runs = plan.chosen()
    write_results(plan, with_plots=False)
    if stale := stale_message(runs, overwrite):
        raise ValueError(stale)
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
        state = "outdated" if state == "finished" and run.is_outdated else state
        text = ", ".join(f"{stage} {n}" for stage, n in steps.items())
        lines.append(f"{run.name:32s} {state:9s} {sum(steps.values()):8d} steps: {text}")
    if stale := stale_message(runs, overwrite):
        return [*lines, "nothing would run:", stale]
    left = [sum(run.definition.steps.values()) for run in runs if run.needs_run(overwrite)]
    shared = "stages that other runs or tables share, or that are finished, are not run again"
    return [*lines, f"{len(left)} of {len(runs)} runs to make, {sum(left)} steps; {shared}"]


def failure_lines(failed: Sequence[Run]) -> list[str]:
    """Each failed run with where to read why."""
    lines = []
    for run in failed:
        path = run.folder / ERROR
        last = path.read_text().strip().splitlines()[-1] if path.is_file() else "did not finish"
        lines.append(f"{run.name}: {last}\n    {path if path.is_file() else run.folder}")
    return lines


def make_one(cfg: DictConfig) -> None:
    """Make the run `cfg.run` (VARIANT/SEED) of a table in this process."""
    from handmim.experiments.stages import Stages, make_run  # they import torch

    table = read_table(cfg)
    names = {f"{v.name}/{seed}": (v, seed) for v in table.variants for seed in table.seeds}
    if cfg.run not in names:
        raise ValueError(f"no run {cfg.run!r} in this table, it has {sorted(names)}")
    variant, seed = names[cfg.run]
    alone = replace(table, variants=(variant,), chosen=(variant.name,), seeds=(seed,))
    (run,) = read_plan(cfg, alone).chosen()
    make_run(run, Stages(compose, run.store).run, cfg.overwrite)


def launch(
    runs: Sequence[Run],
    finished: Callable[[Run], None],
    overrides: Sequence[str],
    *,
    at_once: int = 1,
    command: Sequence[str] = COMMAND,
) -> None:
    """Make runs in other processes; `finished` is called for every run soon after it ended, and one
    that fails does not stop the others.

    All are one Hydra multirun, so that `hydra/launcher=...` decides where they run. With `at_once`
    above 1, each has a process with one torch thread, whose output goes to log.txt.
    """
    alone = at_once > 1
    waiting = [[run] for run in runs] if alone else [list(runs)]
    before = {run.name: _time_of(run) for run in runs}
    running: dict[subprocess.Popen[bytes], list[Run]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                group = waiting.pop(0)
                names = f"run={','.join(run.name for run in group)}"
                if alone:
                    words = [*command, *overrides, "machine.num_threads=1", names]
                    running[_start_logged(words, group[0])] = group
                else:
                    running[start_child([*command, "--multirun", names, *overrides])] = group
            time.sleep(POLL_S)
            for process, group in list(running.items()):
                code = process.poll()
                for run in list(group):
                    is_new = _time_of(run) not in (None, before[run.name])
                    error = run.folder / ERROR
                    if alone and code and not is_new and not error.is_file():  # it was killed
                        write_atomic(error, f"ended with exit code {code}, see {LOG}\n")
                    if code is not None or is_new:
                        group.remove(run)
                        finished(run)
                if code is not None:
                    del running[process]
                    process.communicate()
    finally:
        for process in running:  # each stops after its current step and writes a checkpoint
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in running:
            with process:  # closes its stdin and waits
                pass


def _start_logged(command: Sequence[str], run: Run) -> "subprocess.Popen[bytes]":
    path = run.folder / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s: started, log in %s", run.name, path)
    with path.open("ab") as file:
        env = os.environ | dict.fromkeys(THREADS, "1")
        return start_child(command, env=env, stdout=file, stderr=subprocess.STDOUT)


def _time_of(run: Run) -> int | None:
    """When the result was written, in nanoseconds; None while there is none."""
    path = run.result_file()
    return None if path is None else path.stat().st_mtime_ns
