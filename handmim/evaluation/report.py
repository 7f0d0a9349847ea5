"""Results of evaluations: submissions and their scores, metrics.json, the official scores.txt,
drawings and a table of one; the mean and spread of several checkpoints that may be averaged."""

import logging
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from handmim.engine.checkpoint import OF_RUNS, require
from handmim.engine.identity import By, deciding
from handmim.evaluation.benchmarks import BENCHMARKS, Benchmark, JointsAndVerts, score_report
from handmim.evaluation.predictor import read_model_checkpoint
from handmim.evaluation.scoring import CameraHands
from handmim.evaluation.submission import (
    MB_PER_SAMPLE,
    check_submission,
    read_submission,
    write_submission,
)
from handmim.utils.arguments import one_of
from handmim.utils.config import differences, flatten
from handmim.utils.console import METRICS, markdown_table, metric_text, print_metrics
from handmim.utils.files import write_atomic
from handmim.utils.run import Run

log = logging.getLogger(__name__)

TTA = "tta"  # block of a report, and folder: metrics and files of the mean over several views
TIME = "ms_per_image"
Report = Mapping[str, Any]


def _blocks(report: Report) -> dict[str, Report]:
    """Metrics of the plain crops, by "", and of test-time augmentation, by its name."""
    return {"": report} | ({TTA: report[TTA]} if TTA in report else {})


def _columns_of(rows: Iterable[Report]) -> Sequence[tuple[str, str]]:
    """Columns of a table of evaluations; times are shown where they were taken."""
    timed = any(TIME in metrics for metrics in rows)
    return (*METRICS, (TIME, "ms/image")) if timed else METRICS


def benchmark_of(name: str, num_samples: int) -> Benchmark:
    """A benchmark by name, for a set of `num_samples`; a count that is not official is logged."""
    one_of("benchmark", name, BENCHMARKS)
    official = BENCHMARKS[name]
    if num_samples != official.num_samples:
        text = "this set has %d samples, the official %s has %d: the metrics do not compare with "
        text += "published ones, and the server would refuse the file"
        log.warning(text, num_samples, name, official.num_samples)
    return replace(official, num_samples=num_samples)


def score_file(
    path: str | Path, benchmark: Benchmark, gt: JointsAndVerts | None, shown: str,
    mb_per_sample: float = MB_PER_SAMPLE,
) -> dict[str, Any]:  # fmt: skip
    """Check a submission, pred.json or its zip, and score it where the ground truth, in the
    benchmark's own form, is known. Raises: ValueError where it cannot be scored."""
    pred = read_submission(path, benchmark.num_samples, mb_per_sample)
    findings = check_submission(*pred, benchmark, None if gt is None else gt[0])
    for finding in findings:
        level = logging.ERROR if finding.level == "error" else logging.WARNING
        log.log(level, "%s: %s: %s", shown, finding.name, finding.text)
    unscorable = [f for f in findings if f.name in ("shape", "count", "not-finite")]
    if fatal := [f"{f.name}: {f.text}" for f in unscorable]:
        raise ValueError(f"{shown} cannot be scored as {benchmark.name}. {' '.join(fatal)}")
    report: dict[str, Any] = {"benchmark": benchmark.name, "num_samples": len(pred[0])}
    if gt is None:
        log.info("no ground truth of the evaluation here: submit %s", path)
    else:
        report = score_report(benchmark, pred, gt)
    texts = [{"level": f.level, "name": f.name, "text": f.text} for f in findings]
    return report | {"findings": texts, "submission": shown}


def submit(
    run: Run, name: str, hands: CameraHands, gt: JointsAndVerts | None, folder: str = "."
) -> dict[str, Any]:
    """Write pred.json and its zip, and `score_file` what was written; {} on other processes."""
    if not run.is_main:
        return {}
    benchmark = benchmark_of(name, len(hands.joints_cam_m))
    form = benchmark.canonical_to_benchmark(hands.joints_cam_m, hands.verts_cam_m)
    path = write_submission(run.dir / folder, *form)
    return score_file(path, benchmark, gt, str(path.relative_to(run.dir)))


def write_report(
    run: Run, what: str, report: Report, sheet: NDArray[np.uint8] | None = None
) -> None:
    """Write metrics.json, scores.txt and predictions.png (`sheet` [H, W, 3] RGB) into the run's
    folder, and print the metrics of `what` was scored; the main process does."""
    if not run.is_main:
        return
    run.write_json("metrics.json", report)
    run.discard_replaced()
    if sheet is not None:
        cv2.imwrite(str(run.dir / "predictions.png"), sheet[:, :, ::-1])
    rows = {}
    for name, metrics in _blocks(report).items():
        label = f"{TTA}, {metrics['num_views']} views" if name else what
        rows[label] = metrics
        if "official" in metrics:  # as the official scripts write them
            lines = [f"{key}: {value:.6f}\n" for key, value in metrics["official"].items()]
            write_atomic(run.dir / name / "scores.txt", "".join(lines))
            title = f"{label}\n" if TTA in report else ""
            Console().print(f"{title}{''.join(lines)}", end="", highlight=False)
    print_metrics(rows, _columns_of(rows.values()))
    run.log.info("metrics: %s", run.dir / "metrics.json")


def expanded(given: Sequence[str], key: str = "checkpoint") -> list[str]:
    """Files that paths and patterns (`runs/seed*/last.pt`) name: each once, a pattern's sorted;
    `key` is that of the config. Raises: FileNotFoundError for a pattern that no file matches;
    ValueError for no paths at all."""
    files: dict[Path, str] = {}
    for path in given:
        is_pattern = has_magic(path) and not Path(path).is_file()
        matching = sorted(glob(path, recursive=True)) if is_pattern else [path]
        if not matching:
            raise FileNotFoundError(f"no file matches {path!r} ({key}=)")
        for match in matching:
            files.setdefault(Path(match).absolute(), match)
    if not files:
        raise ValueError(f"{key}=[] names no file: {key}=FILE.pt or [a.pt,b.pt]")
    return list(files.values())


def check_comparable(paths: Sequence[str], data: DictConfig | None) -> list[Report]:
    """The path, name of the run, seed and step of each checkpoint. Raises: ValueError naming two
    that differ in hand model (by content), backbone, head, evaluation crop, or the data that is
    scored: `data`, or their own where that is None. What they were trained with may differ."""
    facts: list[Report] = []
    first: dict[str, Any] = {}
    for path in paths:
        saved = read_model_checkpoint(path)
        require(saved, OF_RUNS, path)
        config = saved["config"]
        about = {key: config[key] for key in ("name", "seed")}
        facts.append({"path": path, **about, "step": saved["step"]})
        chosen: Any = config["data"] if data is None else OmegaConf.to_container(data)
        scored = {**chosen, "test": chosen.get("test") or chosen.get("val"), "val": None}
        compared = deciding({**config, "data": scored}, By.MEAN)
        own = flatten({"hand": saved["meta"].get("hand_sha256"), **compared})
        first = first or own
        if differing := differences(first, own):
            is_data = all(text.startswith("data.") for text in differing)
            way = "one at a time (checkpoint=)" + ", or on the same data (data=...)" * is_data
            text = f"{path} is not averaged with {paths[0]} ({'; '.join(differing)})"
            raise ValueError(f"{text}: score them {way}")
    seeds = [fact["seed"] for fact in facts]
    if len(set(seeds)) < len(seeds):
        log.warning("seeds %s: the spread is not that of independent runs", seeds)
    return facts


def averaged(reports: Sequence[Report], fold: Callable[[list[float]], float]) -> dict[str, Any]:
    """`fold` of each number that all reports have, at any depth; all else is left out."""
    result: dict[str, Any] = {}
    for key in reports[0]:
        values: list[Any] = [report.get(key) for report in reports]
        if all(isinstance(v, Mapping) for v in values):
            result |= {key: inner} if (inner := averaged(values, fold)) else {}
        elif all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            result[key] = fold([float(v) for v in values])
    return result


def summary(facts: Sequence[Report], reports: Sequence[Report]) -> dict[str, Any]:
    """The metrics.json of at least two checkpoints: "checkpoints", each with facts, folder and
    metrics; "mean" and "std", the sample standard deviation, of the metrics that all have."""
    rows = [
        {**fact, "folder": str(number), "metrics": averaged([report], max)}
        for number, (fact, report) in enumerate(zip(facts, reports, strict=True), start=1)
    ]
    mean, std = (averaged(reports, f) for f in (statistics.fmean, statistics.stdev))
    return {"checkpoints": rows, "mean": mean, "std": std}


def markdown(title: str, made: Report) -> str:
    """`summary` as a table of Markdown."""
    rows = [(fact, _blocks(fact["metrics"])) for fact in made["checkpoints"]]
    every = [metrics for _, blocks in rows for metrics in blocks.values()]
    columns = [c for c in _columns_of(every) if any(c[0] in metrics for metrics in every)]
    lines = []
    for name, mean in _blocks(made["mean"]).items():
        suffix = f", {name}" * bool(name)
        for fact, blocks in rows:
            texts = [metric_text(key, blocks[name].get(key)) for key, _ in columns]
            about = (str(fact[key]) for key in ("name", "seed", "step"))
            lines.append([f"{fact['path']}{suffix}", *about, *texts])
        std = _blocks(made["std"])[name]
        spread = [
            f"{metric_text(k, mean[k])} ± {metric_text(k, std[k])}" if k in mean else "-"
            for k, _ in columns
        ]
        lines.append([f"mean ± std of {len(rows)}{suffix}", "", "", "", *spread])
    headings = ["checkpoint", "run", "seed", "step", *(heading for _, heading in columns)]
    return (
        f"# {title}\n\n{markdown_table(headings, lines, num_left=2)}\n\nThe last line of a block "
        "is the mean and the sample standard deviation over the checkpoints, which have one hand "
        "model, network and crop, and were scored on the same data.\n"
    )


def write_averages(run: Run, facts: Sequence[Report], reports: Sequence[Report]) -> dict[str, Any]:
    """Write `summary`, which is returned, as metrics.json and table.md, and print the table."""
    made = summary(facts, reports)
    if not run.is_main:
        return made
    text = markdown(run.name, made)
    write_atomic(run.dir / "table.md", text)
    run.write_json("metrics.json", made)
    run.discard_replaced()
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    run.log.info("metrics: %s and %s", run.dir / "metrics.json", run.dir / "table.md")
    return made
