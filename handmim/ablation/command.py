"""What tools that fill tables do, from their words to what they say at the end."""

from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from handmim.ablation.launch import local_pool, multirun
from handmim.ablation.plan import Compose
from handmim.ablation.runner import (
    Launch,
    check_inputs,
    dry_run_lines,
    failure_lines,
    read_plan,
    run_table,
)
from handmim.engine.signals import Stopped, StopSignals
from handmim.pipelines.preflight import preflight
from handmim.utils.processes import of_signal


class Outcome(NamedTuple):
    """What a tool says, and its exit code."""

    text: str
    code: int = 0


def fill_table(cfg: DictConfig, said: DictConfig, compose: Compose, cell_tool: Path) -> Outcome:
    """Plan, run what is missing, write the table, name what failed.

    Args:
        cfg: composed from configs/ablate.yaml or configs/label_efficiency.yaml.
        said: Hydra's own config of the process: the user's words and the config's name.
        compose: (config name, overrides) -> config, which is not changed.
        cell_tool: script that runs one cell of any such config.
    Raises: ValueError for words that are no table, for files that a cell needs and that cannot be
        used, or stale cells of which nothing is said.
    """
    preflight(cfg, names=("run_root", "out"))
    known = cache(lambda name, *words: compose(name, list(words)))  # rows share their configs

    def once(name: str, words: list[str]) -> DictConfig:
        return known(name, *words)

    plan = read_plan(cfg, once)
    check_inputs(cfg, plan, once)
    if cfg.dry_run:
        return Outcome("\n".join(dry_run_lines(plan.chosen(), cfg.overwrite)))
    out = None if cfg.out is None else Path(cfg.out)
    try:
        with StopSignals():
            failed = run_table(plan, _launch(cfg.jobs, said, cell_tool), cfg.overwrite, out)
    except (Stopped, KeyboardInterrupt) as stop:
        so_far = plan.folder / "table.md"
        code = stop.number if isinstance(stop, Stopped) else of_signal("SIGINT")
        return Outcome(f"stopped; the same command goes on. So far: {so_far}", code)
    text = f"{(plan.folder / 'table.md').read_text()}\ntable: {plan.folder}"
    if not failed:
        return Outcome(text)
    lines = [f"{len(failed)} cells failed, the same command tries them again:"]
    return Outcome("\n".join([text, *lines, *failure_lines(failed)]), 1)


def _launch(jobs: int, said: DictConfig, cell_tool: Path) -> Launch:
    script = [str(cell_tool), f"--config-name={said.job.config_name}"]
    words = list(said.overrides.task)
    if jobs > 1:
        return partial(local_pool, script, words, jobs=jobs)
    words += [word for word in said.overrides.hydra if not word.startswith("hydra.mode=")]
    return partial(multirun, script, words)
