"""Figures of several checkpoints of one method: a line for each, their mean and spread."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from handmim.reports.scores import TTA, blocks, columns_of
from handmim.utils.files import write_atomic
from handmim.utils.run import Run
from handmim.utils.tables import markdown_table, metric_text, print_metrics

Report = Mapping[str, Any]


class CheckpointFacts(NamedTuple):
    """Which checkpoint a line of the table is about."""

    path: str
    name: str  # of the run that wrote it
    seed: int
    step: int


def averaged(reports: Sequence[Report], fold: Callable[[list[float]], float]) -> dict[str, Any]:
    """One number for each figure that all reports have, at any depth.

    Args:
        reports: what is no number in them (words, intervals, findings) is left out.
        fold: values of one figure to a number.
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
    """What metrics.json says of several checkpoints.

    Args:
        facts, reports: of at least two checkpoints, in the same order.
    Returns: "checkpoints", each with its facts, the folder of its results and its figures; "mean"
        and "std", the sample standard deviation, of the figures that all have.
    """
    rows = [
        {**fact._asdict(), "folder": str(number), "figures": averaged([report], max)}
        for number, (fact, report) in enumerate(zip(facts, reports, strict=True), start=1)
    ]
    mean, std = (averaged(reports, f) for f in (statistics.fmean, statistics.stdev))
    return {"checkpoints": rows, "mean": mean, "std": std}


def markdown(title: str, made: Mapping[str, Any]) -> str:
    """`summary` as a table of Markdown."""
    rows = [row["figures"] for row in made["checkpoints"]]
    every = [figures for row in rows for figures in blocks(row).values()]
    columns = [c for c in columns_of(every) if any(c[0] in f for f in every)]
    headings = ["checkpoint", "run", "seed", "step", *(heading for _, heading in columns)]
    lines = []
    for name in blocks(made["mean"]):
        suffix = f", {name}" * bool(name)
        for fact, row in zip(made["checkpoints"], rows, strict=True):
            figures = blocks(row)[name]
            cells = [fact["path"] + suffix, *(str(fact[k]) for k in ("name", "seed", "step"))]
            lines.append([*cells, *(metric_text(key, figures.get(key)) for key, _ in columns)])
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
    run.log.info("figures: %s and %s", run.dir / "metrics.json", run.dir / "table.md")
    return made
