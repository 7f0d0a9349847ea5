"""Scoring against a plain scorer in numpy, scipy and json: all metrics of a set, their parts, and
prediction files."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.core import Bench, Row, compared
from benchmark.references import scipy_scorer
from handmim.evaluation.benchmarks import FREIHAND, HO3D_V2
from handmim.evaluation.submission import read_submission, write_submission
from handmim.geometry.align import similarity_align
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.model import HandModel
from handmim.hand.poses import PoseSampler, sample_betas
from handmim.hand.skeleton import ROOT_JOINT
from handmim.metrics.neighbours import (
    add_hits,
    harmonic_means,
    sort_gt,
    squared_limits,
    workspace,
)
from handmim.metrics.pose import F_THRESHOLDS_M, HandMetrics, point_errors_m
from handmim.utils.kernels import njit

Arrays = list[NDArray[np.float64]]
Work = Callable[[Arrays], Any]

BATCH = 64  # of metrics that are filled batch by batch


def hands(path: Path, num: int, rotation_rad: float, shift_m: float, seed: int = 0) -> Arrays:
    """Predicted and true hands of any pose, shape and translation: joints [n, 21, 3] and vertices
    [n, 778, 3] of each, metres.

    Args:
        path: of a hand model with joint limits.
        num: hands.
        rotation_rad: deviation of every joint's predicted rotation.
        shift_m: deviation of the predicted translation.
        seed: of everything.
    """
    hand, rng = HandModel.from_file(path), np.random.default_rng(seed)
    rotmats = np.tile(np.eye(3), (num, 16, 1, 1))
    rotmats[:, 1:] = PoseSampler.from_arrays(hand.arrays).sample(num, rng)
    rotmats[:, 0] = rotvec_to_matrix(rng.normal(0, 2, (num, 3)))
    wrong = rotvec_to_matrix(rng.normal(0, rotation_rad, (num * 16, 3))).reshape(num, 16, 3, 3)
    betas = sample_betas(num, hand.num_betas, rng)
    transl = rng.normal(0, 0.1, (num, 3)) + np.array([0, 0, 0.8])
    moved = transl + rng.normal(0, shift_m, (num, 3))
    arrays: Arrays = []
    for parameters in ((rotmats @ wrong, betas / 2, moved), (rotmats, betas, transl)):
        with torch.no_grad():
            mesh = hand(*(torch.from_numpy(a).float() for a in parameters))
        arrays += [mesh.joints_m.double().numpy(), mesh.verts_m.double().numpy()]
    return arrays


def training_metrics(arrays: Arrays) -> dict[str, float]:
    """Metrics of an evaluation while training, batch by batch in single precision."""
    metrics = HandMetrics(ROOT_JOINT)
    for start in range(0, len(arrays[0]), BATCH):
        rows = slice(start, start + BATCH)
        metrics.update(*(torch.from_numpy(a[rows]).float() for a in arrays))
    found = metrics.compute()
    return {name: value for name, value in found.items() if not name.startswith("num_")}


def aligned_mm(arrays: Arrays, align: Callable[..., torch.Tensor]) -> NDArray[np.float64]:
    """[n] mean distances of vertices after an alignment, in pieces."""
    pred, gt = (torch.from_numpy(arrays[i]) for i in (1, 3))
    pieces = zip(pred.split(BATCH), gt.split(BATCH), strict=True)
    means = [point_errors_m(align(a, b), b).mean(dim=1) for a, b in pieces]
    return torch.cat(means).numpy() * 1e3


def plainly(one: Callable[..., Any], arrays: Arrays) -> NDArray[np.float64]:
    """A function of vertices applied to one sample after another."""
    return np.array([one(pred, gt) for pred, gt in zip(arrays[1], arrays[3], strict=True)])


@njit(nogil=True)
def _hit_counts(pred, gt, limits, hits):  # type: ignore[no-untyped-def]
    work = workspace(pred.shape[1], gt.shape[1], len(limits))
    for b in range(pred.shape[0]):
        grid = sort_gt(gt[b], limits, work)
        add_hits(pred[b], gt[b], grid, limits, work, hits[0, b], hits[1, b])


def f_scores(
    pred_m: NDArray[np.float64], gt_m: NDArray[np.float64], thresholds_m: Sequence[float]
) -> NDArray[np.float64]:
    """[n, T] F-scores of [n, P, 3] and [n, Q, 3] metres alone, without errors and alignment."""
    order, limits = squared_limits(thresholds_m)
    hits = np.zeros((2, len(pred_m), len(limits)), np.int64)
    if hits.size:
        _hit_counts(pred_m, gt_m, limits, hits)
    return harmonic_means(hits[0] / pred_m.shape[1], hits[1] / gt_m.shape[1], order)


CASES: dict[str, tuple[str, dict[str, Work]]] = {
    "FreiHAND, all metrics": (
        "",
        {
            "scipy": lambda arrays: scipy_scorer.official(*arrays, is_ho3d=False),
            "handmim": lambda arrays: FREIHAND.score(*arrays),
        },
    ),
    "HO-3D, all metrics": (
        "",
        {
            "scipy": lambda arrays: scipy_scorer.official(*arrays, is_ho3d=True),
            "handmim": lambda arrays: HO3D_V2.score(*arrays),
        },
    ),
    "metrics while training": (
        "",
        {
            "scipy": lambda arrays: scipy_scorer.root_relative(ROOT_JOINT, *arrays),
            "handmim": training_metrics,
        },
    ),
    "vertices aligned": (
        "mm",
        {
            "scipy": partial(plainly, scipy_scorer.aligned_mm),
            "handmim": partial(aligned_mm, align=similarity_align),
        },
    ),
    "F-scores of vertices": (
        "",
        {
            "scipy": partial(plainly, scipy_scorer.f_scores),
            "handmim": lambda arrays: f_scores(arrays[1], arrays[3], F_THRESHOLDS_M),
        },
    ),
}


def gap(ours: Any, theirs: Any) -> float:
    """Largest difference of two results: arrays, or metrics by name.

    Raises: ValueError for metrics of other names.
    """
    if isinstance(ours, Mapping):
        if set(ours) != set(theirs):
            raise ValueError(f"metrics differ in {sorted(set(ours) ^ set(theirs))}")
        return max(abs(ours[name] - theirs[name]) for name in ours)
    return float(np.abs(ours - theirs).max())


def measure(
    bench: Bench,
    *,
    hand: str,
    num: int,
    num_plain: int,
    num_files: int,
    rotation_rad: float,
    shift_m: float,
    promised: Mapping[str, float],
) -> Iterator[list[Row]]:
    """A case per set of metrics, and one for writing and reading prediction files, all on the CPU.

    The reference scores the first `num_plain` samples, on which results are compared; its times
    are given per set of `num`.
    """
    arrays = hands(Path(hand), num, rotation_rad, shift_m)
    some = [a[:num_plain] for a in arrays]
    for case, (unit, works) in CASES.items():
        given = {name: some if name == "scipy" else arrays for name in works}
        seconds = bench.race({name: partial(work, given[name]) for name, work in works.items()})
        expected = works["scipy"](some)
        more = {
            name: {"error": gap(work(some), expected), "error_unit": unit}
            for name, work in works.items()
            if name != "scipy"
        }
        reference = f"scipy, {num_plain} samples x {num / num_plain:.4g}"
        times = {reference: [s * num / num_plain for s in seconds.pop("scipy")], **seconds}
        yield compared(
            "score",
            f"{case} of {num} samples",
            times,
            reference,
            items=num,
            unit="samples",
            promised=_of_case(promised, case),
            more=more,
        )
    yield from _files(bench, [a[:num_files] for a in arrays[:2]], promised)


def _files(bench: Bench, pred: Arrays, promised: Mapping[str, float]) -> Iterator[list[Row]]:
    """Writing pred.json and its zip, and reading pred.json."""
    num = len(pred[0])
    with tempfile.TemporaryDirectory() as name:
        plain, ours = Path(name) / "plain", Path(name) / "ours"
        plain.mkdir()
        works: dict[str, dict[str, Callable[[], Any]]] = {
            "writing predictions": {
                "json": lambda: write_json(plain, *pred),
                "handmim": lambda: write_submission(ours, *pred),
            },
            "reading predictions": {
                "json": lambda: read_json(plain / "pred.json"),
                "handmim": lambda: read_submission(ours / "pred.json"),
            },
        }
        for case, variants in works.items():
            seconds = bench.race(variants)
            back = read_submission(ours / "pred.json")
            off = max(gap(a, b) for a, b in zip(back, pred, strict=True))
            yield compared(
                "score",
                f"{case} of {num} samples",
                seconds,
                "json",
                items=num,
                unit="samples",
                promised=_of_case(promised, case),
                more={"handmim": {"error": off, "error_unit": "m"}},
            )


def _of_case(promised: Mapping[str, float], case: str) -> dict[str, float]:
    return {"handmim": promised[case]} if case in promised else {}


def write_json(folder: Path, *pred: NDArray[np.float64]) -> None:
    """pred.json with seven decimals and the zip around it, by the json module."""
    with (folder / "pred.json").open("w") as file:
        json.dump([points.astype(np.float64).round(7).tolist() for points in pred], file)
    with ZipFile(folder / "pred.zip", "w", ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(folder / "pred.json", "pred.json")


def read_json(path: Path) -> Arrays:
    """Joints [n, 21, 3] and vertices [n, 778, 3]."""
    return [np.array(points) for points in json.loads(path.read_text())]
