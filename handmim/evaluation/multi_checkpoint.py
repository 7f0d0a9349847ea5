"""Evaluation of several checkpoints of one method: which files, whether their metrics may be
averaged, a line for each, their mean and spread."""

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from handmim.engine.checkpoint import OF_RUNS, require
from handmim.engine.identity import By, deciding
from handmim.evaluation.load_model import read_model_checkpoint
from handmim.evaluation.report import TTA, blocks, columns_of
from handmim.utils.config import differences, flatten
from handmim.utils.files import write_atomic
from handmim.utils.run import Run
from handmim.utils.tables import markdown_table, metric_text, print_metrics

log = logging.getLogger(__name__)

Report = Mapping[str, Any]


class CheckpointFacts(NamedTuple):
    """Which checkpoint a line of the table is about."""

    path: str
    name: str  # of the run that wrote it
    seed: int
    step: int


def expanded(given: Sequence[str]) -> list[str]:
    """Files that paths and patterns (`runs/seed*/last.pt`) name: each once, those of a pattern
    sorted.

    Raises: FileNotFoundError for a pattern that no file matches; ValueError for no paths at all.
    """
    files: dict[Path, str] = {}
    for path in given:
        is_pattern = has_magic(path) and not Path(path).is_file()
        matching = sorted(glob(path, recursive=True)) if is_pattern else [path]
        if not matching:
            raise FileNotFoundError(f"no file matches {path!r} (checkpoint=)")
        for match in matching:
            files.setdefault(Path(match).absolute(), match)
    if not files:
        raise ValueError("checkpoint=[] names no file: checkpoint=FILE.pt or [a.pt,b.pt]")
    return list(files.values())


def check_comparable(paths: Sequence[str], data: DictConfig | None) -> list[CheckpointFacts]:
    """Read what each checkpoint is, and refuse those whose mean has no meaning.

    Compared are the hand model by its content, backbone and head, the evaluation crop, and the data
    that is scored. What they were trained with is not: that is what the lines may differ in.

    Args:
        paths: of the checkpoints.
        data: that all are scored on; None scores each on its own.
    Raises: ValueError naming two checkpoints and what they differ in.
    """
    facts: list[CheckpointFacts] = []
    first: dict[str, Any] = {}
    for path in paths:
        saved = read_model_checkpoint(path)
        require(saved, OF_RUNS, path)
        config = saved["config"]
        facts.append(CheckpointFacts(path, config["name"], config["seed"], saved["step"]))
        own = _scored_settings(saved, data)
        first = first or own
        if differing := differences(first, own):
            same_data = ", or on the same data (data=...)"
            is_data_alone = all(text.startswith("data.") for text in differing)
            raise ValueError(
                f"{path} is not averaged with {paths[0]} ({'; '.join(differing)}): score them one "
                f"at a time (checkpoint=){same_data * is_data_alone}"
            )
    seeds = [fact.seed for fact in facts]
    if len(set(seeds)) < len(seeds):
        log.warning("seeds %s: the spread is not that of independent runs", seeds)
    return facts


def _scored_settings(saved: Mapping[str, Any], data: DictConfig | None) -> dict[str, Any]:
    """Leaves that two checkpoints must share for their metrics to be averaged, by dotted name."""
    config = saved["config"]
    chosen: Any = config["data"] if data is None else OmegaConf.to_container(data)
    scored = {**chosen, "test": chosen.get("test") or chosen.get("val"), "val": None}
    compared = deciding({**config, "data": scored}, By.MEAN)
    return flatten({"hand": saved["meta"].get("hand_sha256"), **compared})


def averaged(reports: Sequence[Report], fold: Callable[[list[float]], float]) -> dict[str, Any]:
    """One number for each metric that all reports have, at any depth.

    Args:
        reports: what is no number in them (texts, intervals, findings) is left out.
        fold: values of one metric to a number.
    """
    result: dict[str, Any] = {}
    for key in reports[0]:
        values: list[Any] = [report.get(key) for report in reports]
        if all(isinstance(v, Mapping) for v in values):
            result |= {key: inner} if (inner := averaged(values, fold)) else {}
        elif all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            result[key] = fold([float(v) for v in values])
    return result


def summary(facts: Sequence[CheckpointFacts], reports: Sequence[Report]) -> dict[str, Any]:
    """The metrics.json of several checkpoints.

    Args:
        facts, reports: of at least two checkpoints, in the same order.
    Returns: "checkpoints", each with its facts, the folder of its results and its metrics; "mean"
        and "std", the sample standard deviation, of the metrics that all have.
    """
    rows = [
        {**fact._asdict(), "folder": str(number), "metrics": averaged([report], max)}
        for number, (fact, report) in enumerate(zip(facts, reports, strict=True), start=1)
    ]
    mean, std = (averaged(reports, f) for f in (statistics.fmean, statistics.stdev))
    return {"checkpoints": rows, "mean": mean, "std": std}


def markdown(title: str, made: Mapping[str, Any]) -> str:
    """`summary` as a table of Markdown."""
    rows = [row["metrics"] for row in made["checkpoints"]]
    every = [metrics for row in rows for metrics in blocks(row).values()]
    columns = [c for c in columns_of(every) if any(c[0] in metrics for metrics in every)]
    headings = ["checkpoint", "run", "seed", "step", *(heading for _, heading in columns)]
    lines = []
    for name in blocks(made["mean"]):
        suffix = f", {name}" * bool(name)
        for fact, row in zip(made["checkpoints"], rows, strict=True):
            metrics = blocks(row)[name]
            texts = [fact["path"] + suffix, *(str(fact[k]) for k in ("name", "seed", "step"))]
            lines.append([*texts, *(metric_text(key, metrics.get(key)) for key, _ in columns)])
        mean, std = blocks(made["mean"])[name], blocks(made["std"])[name]
        spread = [
            f"{metric_text(k, mean[k])} ± {metric_text(k, std[k])}" if k in mean else "-"
            for k, _ in columns
        ]
        lines.append([f"mean ± std of {len(rows)}{suffix}", "", "", "", *spread])
    body = markdown_table(headings, lines, num_left=2)
    return (
        f"# {title}\n\n{body}\n\nThe last line of a block is the mean and the sample standard "
        "deviation over the checkpoints, which have one hand model, network and crop, and were "
        "scored on the same data.\n"
    )


def write_averages(
    run: Run, facts: Sequence[CheckpointFacts], reports: Sequence[Report]
) -> dict[str, Any]:
    """Write metrics.json and table.md, print the table; the main process does.

    Args:
        run: whose folder takes both; the results of each checkpoint lie below it.
        facts, reports: as `summary` takes them.
    Returns: the summary.
    """
    made = summary(facts, reports)
    if not run.is_main:
        return made
    write_atomic(run.dir / "table.md", markdown(run.name, made))
    run.write_json("metrics.json", made)
    run.discard_replaced()
    rows: dict[str, Any] = {}
    for name in blocks(made["mean"]):
        suffix = f", {TTA}" * bool(name)
        for number, (fact, report) in enumerate(zip(facts, reports, strict=True), start=1):
            label = f"{number}: {fact.name}, seed {fact.seed}, step {fact.step}{suffix}"
            rows[label] = blocks(dict(report))[name]
        for what in ("mean", "std"):
            rows[f"{what} of {len(facts)}{suffix}"] = blocks(made[what])[name]
    print_metrics(rows, columns_of(rows.values()))
    run.log.info("metrics: %s and %s", run.dir / "metrics.json", run.dir / "table.md")
    return made
