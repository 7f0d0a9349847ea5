"""From hands before the camera to submission files and official figures."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.benchmarks.bootstrap import bootstrap_intervals, per_joint_mm
from handmim.benchmarks.checks import check_submission
from handmim.benchmarks.freihand import FREIHAND
from handmim.benchmarks.ho3d import HO3D_V2, HO3D_V3
from handmim.benchmarks.official import CHUNK, Benchmark, derived_mm, mean_scores
from handmim.benchmarks.submission import MB_PER_SAMPLE, read_submission, write_submission
from handmim.hand.skeleton import JOINT_NAMES, ROOT_JOINT
from handmim.tasks.camera_hands import CameraHands
from handmim.utils.run import Run

log = logging.getLogger(__name__)

BENCHMARKS = {b.name: b for b in (FREIHAND, HO3D_V2, HO3D_V3)}
UNSCORABLE = ("shape", "count", "not-finite")
Points = NDArray[np.floating]


def benchmark_of(name: str, num_samples: int) -> Benchmark:
    """A benchmark by name, for a set of `num_samples`; says so when that is not the official count.

    Raises: ValueError listing the names.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are {sorted(BENCHMARKS)} (data.benchmark)")
    official = BENCHMARKS[name]
    if num_samples != official.num_samples:
        log.warning(
            "this set has %d samples, the official %s has %d: figures do not compare with "
            "published ones, and the server would refuse the file",
            num_samples,
            name,
            official.num_samples,
        )
    return dataclasses.replace(official, num_samples=num_samples)


def checked(
    pred: tuple[Points, Points],
    truth: tuple[Points, Points] | None,
    benchmark: Benchmark,
    what: str,
) -> list[dict[str, str]]:
    """Findings of `check_submission`, logged.

    Raises: ValueError for those that nothing could be scored with: `UNSCORABLE`.
    """
    findings = check_submission(*pred, benchmark, None if truth is None else truth[0])
    for finding in findings:
        level = logging.ERROR if finding.level == "error" else logging.WARNING
        log.log(level, "%s: %s: %s", what, finding.name, finding.text)
    fatal = [f"{f.name}: {f.text}" for f in findings if f.name in UNSCORABLE]
    if fatal:
        raise ValueError(f"{what} cannot be scored as {benchmark.name}. " + " ".join(fatal))
    return [dataclasses.asdict(f) for f in findings]


def score_report(
    benchmark: Benchmark, pred: tuple[Points, Points], truth: tuple[Points, Points]
) -> dict[str, Any]:
    """Every official figure, the usual names in mm, intervals and errors by joint.

    Args:
        benchmark: whose order and axes all arrays are in.
        pred, truth: joints [n, 21, 3] and vertices [n, V, 3] each, metres.
    """
    per_sample = benchmark.per_sample_scores(*pred, *truth)
    official = mean_scores(per_sample)
    intervals = bootstrap_intervals(per_sample)
    ends = [derived_mm({name: ends[i] for name, ends in intervals.items()}) for i in (0, 1)]
    return {
        **derived_mm(official),
        **root_relative_mm(benchmark, pred, truth),
        "num_samples": len(pred[0]),
        "benchmark": benchmark.name,
        "official": official,
        "interval_95": {name: [low, ends[1][name]] for name, low in ends[0].items()},
        "per_joint": per_joint_mm(pred[0], truth[0], benchmark.joint_names),
    }


def root_relative_mm(
    benchmark: Benchmark, pred: tuple[Points, Points], truth: tuple[Points, Points]
) -> dict[str, float]:
    """MPJPE and MPVPE with the middle knuckle on the truth's, as our other reports give them."""
    root = benchmark.joint_names.index(JOINT_NAMES[ROOT_JOINT])
    shift = truth[0][:, [root]] - pred[0][:, [root]]

    def error_mm(i: int) -> float:
        """Mean over all points, in pieces that stay in a core's cache."""
        pieces = [slice(k, k + CHUNK) for k in range(0, len(shift), CHUNK)]
        totals = [np.linalg.norm(pred[i][p] + shift[p] - truth[i][p], axis=2).sum() for p in pieces]
        return float(np.sum(totals)) / (len(pred[i]) * pred[i].shape[1]) * 1e3

    return {"mpjpe_mm": error_mm(0), "mpvpe_mm": error_mm(1)}


def submit(
    run: Run,
    name: str,
    hands: CameraHands,
    truth: tuple[Points, Points] | None,
    folder: str = ".",
) -> dict[str, Any]:
    """Write pred.json and its zip, check them, and score what was written where the truth is known.

    Args:
        run: whose main process writes and scores.
        name: of the benchmark.
        hands: predictions.
        truth: joints and vertices in the benchmark's own form, or None.
        folder: of the files, below that of the run.
    Raises: ValueError for predictions that are not finite; what else is odd about them is logged
        and reported.
    Returns: the figures; without truth only what was written; nothing on other processes.
    """
    if not run.is_main:
        return {}
    benchmark = benchmark_of(name, len(hands.joints_cam_m))
    form = benchmark.canonical_to_benchmark(hands.joints_cam_m, hands.verts_cam_m)
    path = write_submission(run.dir / folder, *form)
    written = read_submission(path)  # what is scored is what would be sent
    name_of_file = str(path.relative_to(run.dir))
    findings = checked(written, truth, benchmark, name_of_file)
    report: dict[str, Any] = {"benchmark": name, "num_samples": len(written[0])}
    if truth is None:
        log.info("no truth of the evaluation here: submit %s", path)
    else:
        report = score_report(benchmark, written, truth)
    return report | {"findings": findings, "submission": name_of_file}


def score_file(
    path: str | Path,
    name: str,
    truth: tuple[Points, Points],
    *,
    mb_per_sample: float = MB_PER_SAMPLE,
) -> dict[str, Any]:
    """Check and score an existing submission, pred.json or its zip.

    Args:
        path: file.
        name: of the benchmark.
        truth: joints and vertices in the benchmark's own form.
        mb_per_sample: largest size of the unpacked file per sample of the truth.
    Raises: ValueError when it is none; what else is odd about it is logged and reported.
    """
    benchmark = benchmark_of(name, len(truth[0]))
    pred = read_submission(Path(path), len(truth[0]), mb_per_sample)
    findings = checked(pred, truth, benchmark, str(path))
    return score_report(benchmark, pred, truth) | {"findings": findings, "submission": str(path)}
