"""From camera-space predictions to submission files and official metrics."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.evaluation.benchmarks import BENCHMARKS, CHUNK, Benchmark, JointsAndVerts, derived_mm
from handmim.evaluation.scoring import CameraHands
from handmim.evaluation.submission import (
    MB_PER_SAMPLE,
    check_submission,
    read_submission,
    write_submission,
)
from handmim.geometry.align import similarity_align
from handmim.hand.skeleton import JOINT_NAMES, ROOT_JOINT
from handmim.metrics.pose import point_errors_m
from handmim.utils.arguments import one_of
from handmim.utils.run import Run

log = logging.getLogger(__name__)

LEVEL = 0.95  # of bootstrap intervals
UNSCORABLE = ("shape", "count", "not-finite")


def benchmark_of(name: str, num_samples: int) -> Benchmark:
    """A benchmark by name, for a set of `num_samples`; a count that is not official is logged."""
    one_of("benchmark", name, BENCHMARKS)
    official = BENCHMARKS[name]
    if num_samples != official.num_samples:
        text = "this set has %d samples, the official %s has %d: the metrics do not compare with "
        text += "published ones, and the server would refuse the file"
        log.warning(text, num_samples, name, official.num_samples)
    return dataclasses.replace(official, num_samples=num_samples)


def bootstrap_intervals(
    per_sample: Mapping[str, NDArray[np.floating]], num: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of means of [n] values under drawing the samples `num` times again,
    one draw for all metrics. Frames of one video are not independent: their true intervals are
    wider. Raises: ValueError for no or unequally many values, or some that are not finite."""
    lengths = {name: np.shape(values) for name, values in per_sample.items()}
    if len(set(lengths.values())) != 1 or any(len(s) != 1 or s[0] < 1 for s in lengths.values()):
        raise ValueError(f"one value per sample and at least one sample required, got {lengths}")
    table = np.stack([np.asarray(v, np.float64) for v in per_sample.values()], axis=1)  # [n, k]
    if not np.isfinite(table).all():
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        raise ValueError(f"values are not finite in samples {bad[:5].tolist()} of {len(table)}")
    rng, n = np.random.default_rng(seed), len(table)
    means = np.empty((num, table.shape[1]))
    for i in range(num):
        means[i] = np.bincount(rng.integers(n, size=n), minlength=n) @ table / n
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (float(low[k]), float(high[k])) for k, name in enumerate(per_sample)}


def per_joint_mm(
    pred_joints_m: NDArray[np.floating], gt_joints_m: NDArray[np.floating], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Mean error of every joint of [n, J, 3] metres: `abs_mm` of absolute coordinates and `pa_mm`
    after similarity alignment of the sample; their means are the official metrics x 10."""
    arrays = (np.array(points, np.float64) for points in (pred_joints_m, gt_joints_m))
    pred, gt = map(torch.from_numpy, arrays)
    raw = point_errors_m(pred, gt).mean(dim=0) * 1e3
    aligned = point_errors_m(similarity_align(pred, gt), gt).mean(dim=0) * 1e3
    return {
        name: {"abs_mm": float(raw[i]), "pa_mm": float(aligned[i])} for i, name in enumerate(names)
    }


def root_relative_mm(
    benchmark: Benchmark, pred: JointsAndVerts, gt: JointsAndVerts
) -> dict[str, float]:
    """MPJPE and MPVPE with the middle knuckle on the true one, as our other reports give them."""
    root = benchmark.joint_names.index(JOINT_NAMES[ROOT_JOINT])
    shift = gt[0][:, [root]] - pred[0][:, [root]]

    def error_mm(i: int) -> float:
        """Mean over all points, in pieces that stay in a core's cache."""
        pieces = [slice(k, k + CHUNK) for k in range(0, len(shift), CHUNK)]
        totals = [np.linalg.norm(pred[i][p] + shift[p] - gt[i][p], axis=2).sum() for p in pieces]
        return float(np.sum(totals)) / (len(pred[i]) * pred[i].shape[1]) * 1e3

    return {"mpjpe_mm": error_mm(0), "mpvpe_mm": error_mm(1)}


def score_report(benchmark: Benchmark, pred: JointsAndVerts, gt: JointsAndVerts) -> dict[str, Any]:
    """Every official metric, the usual names in mm, intervals and errors by joint, of joints [n,
    21, 3] and vertices [n, V, 3], metres in the benchmark's order and axes."""
    per_sample = benchmark.per_sample_scores(*pred, *gt)
    official = {name: float(values.mean()) for name, values in per_sample.items()}
    intervals = bootstrap_intervals(per_sample)
    low, high = (derived_mm({name: e[i] for name, e in intervals.items()}) for i in (0, 1))
    return {
        **derived_mm(official),
        **root_relative_mm(benchmark, pred, gt),
        "num_samples": len(pred[0]),
        "benchmark": benchmark.name,
        "official": official,
        "interval_95": {name: [low[name], high[name]] for name in low},
        "per_joint": per_joint_mm(pred[0], gt[0], benchmark.joint_names),
    }


def _checked(
    pred: JointsAndVerts, gt: JointsAndVerts | None, benchmark: Benchmark, what: str
) -> list[dict[str, str]]:
    """Findings of `check_submission`, logged. Raises: ValueError for `UNSCORABLE` ones."""
    findings = check_submission(*pred, benchmark, None if gt is None else gt[0])
    for finding in findings:
        level = logging.ERROR if finding.level == "error" else logging.WARNING
        log.log(level, "%s: %s: %s", what, finding.name, finding.text)
    if fatal := [f"{f.name}: {f.text}" for f in findings if f.name in UNSCORABLE]:
        raise ValueError(f"{what} cannot be scored as {benchmark.name}. " + " ".join(fatal))
    return [{"level": f.level, "name": f.name, "text": f.text} for f in findings]


def submit(
    run: Run, name: str, hands: CameraHands, gt: JointsAndVerts | None, folder: str = "."
) -> dict[str, Any]:
    """Write pred.json and its zip, check them, and score what was written where the ground truth,
    joints and vertices in the benchmark's own form, is known; {} on other processes.

    Raises: ValueError for predictions that are not finite; other findings are reported.
    """
    if not run.is_main:
        return {}
    benchmark = benchmark_of(name, len(hands.joints_cam_m))
    form = benchmark.canonical_to_benchmark(hands.joints_cam_m, hands.verts_cam_m)
    path = write_submission(run.dir / folder, *form)
    written = read_submission(path)  # what is scored is what would be sent
    name_of_file = str(path.relative_to(run.dir))
    findings = _checked(written, gt, benchmark, name_of_file)
    report: dict[str, Any] = {"benchmark": name, "num_samples": len(written[0])}
    if gt is None:
        log.info("no ground truth of the evaluation here: submit %s", path)
    else:
        report = score_report(benchmark, written, gt)
    return report | {"findings": findings, "submission": name_of_file}


def score_file(
    path: str | Path, name: str, gt: JointsAndVerts, *, mb_per_sample: float = MB_PER_SAMPLE
) -> dict[str, Any]:
    """Check and score an existing submission, pred.json or its zip, as `submit` does."""
    benchmark = benchmark_of(name, len(gt[0]))
    pred = read_submission(path, len(gt[0]), mb_per_sample)
    findings = _checked(pred, gt, benchmark, str(path))
    return score_report(benchmark, pred, gt) | {"findings": findings, "submission": str(path)}
