"""The official FreiHAND and HO-3D evaluations: errors of every sample in float64, their means under
the names and units of the official scripts, and intervals of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.geometry.align import similarity_align
from handmim.hand.io import NUM_VERTS
from handmim.hand.skeleton import JOINT_NAMES, NUM_JOINTS, ROOT_JOINT, joint_order
from handmim.metrics.pose import F_THRESHOLDS_M, mesh_errors, point_errors_m, sample_auc

Points = NDArray[np.floating] | Tensor
JointsAndVerts = tuple[NDArray[np.floating], NDArray[np.floating]]

# 64 samples of 778 points in float64 are 1.2 MB: every pass over them stays in a core's cache.
CHUNK = 64
# Maps OpenCV camera axes to these; each is its own inverse.
AXES = {"opencv": (1.0, 1.0, 1.0), "opengl": (1.0, -1.0, -1.0)}
# Wrist and middle knuckle in HO-3D's order: the bone that sets the scale.
HO3D_WRIST, HO3D_KNUCKLE = 0, 4

LEVEL = 0.95  # of bootstrap intervals
F_NAMES = ("f_score_5", "f_al_score_5", "f_score_15", "f_al_score_15")
# Names that papers and our other reports use; lengths are cm in the official scripts, mm here.
USUAL_NAMES = dict(zip(F_NAMES, ("abs_f5", "pa_f5", "abs_f15", "pa_f15"), strict=True))
for _end, _prefix in (
    ("", "abs"),
    ("_al", "pa"),
    ("_procrustes_al", "pa"),
    ("_scale_trans_al", "st"),
):
    for _points, _length, _auc in (("xyz", "mpjpe_mm", "joints"), ("mesh", "mpvpe_mm", "verts")):
        USUAL_NAMES[f"{_points}{_end}_mean3d"] = f"{_prefix}_{_length}"
        USUAL_NAMES[f"{_points}{_end}_auc3d"] = f"{_prefix}_auc_{_auc}"


def as_numpy(points: Points) -> NDArray[np.floating]:
    """An array, or a tensor of any device and precision, as an array; copied only where needed."""
    if not isinstance(points, Tensor):
        return np.asarray(points)
    points = points.detach().cpu()
    return (points.float() if points.dtype == torch.bfloat16 else points).numpy()


def not_finite(array: NDArray[np.floating]) -> NDArray[np.intp]:
    """Indices of samples that hold a NaN or an infinity: [n, points, 3] -> [k]."""
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(array.sum(axis=(1, 2))))
    return suspects[~np.isfinite(array[suspects]).all(axis=(1, 2))]


def as_hands(joints: Points, verts: Points, prefix: str = "") -> JointsAndVerts:
    """Joints [n, 21, 3] and MANO's vertices of equally many samples, n >= 1, as arrays; ValueError
    for other shapes or kinds, and naming samples that are not finite."""
    arrays = []
    for what, points, num in (("joints", joints, NUM_JOINTS), ("verts", verts, NUM_VERTS)):
        name, array = prefix + what, as_numpy(points)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {array.dtype}, floats are required")
        if array.ndim != 3 or array.shape[1:] != (num, 3):
            hint = "; only MANO's 778 vertices are scored" if num == NUM_VERTS else ""
            raise ValueError(f"{name} is {array.shape}, [n, {num}, 3] is required{hint}")
        if not len(array):
            raise ValueError(f"{name} holds no samples: there is nothing to score")
        if len(bad := not_finite(array)):
            text = f"{bad[:5].tolist()} ({len(bad)} of {len(array)})"
            raise ValueError(f"{name} is not finite in samples {text}")
        arrays.append(array)
    if len(arrays[0]) != len(arrays[1]):
        text = f"{len(arrays[0])} samples of {prefix}joints and {len(arrays[1])} of vertices"
        raise ValueError(f"{text}: one of each is required")
    return arrays[0], arrays[1]


def _of_errors(errors_m: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Mean in cm and AUC of every sample: [n, P] metres -> two of [n]."""
    return [errors_m.mean(axis=1) * 100, sample_auc(torch.from_numpy(errors_m)).numpy()]


def scale_trans_align(
    pred_joints: NDArray[np.floating], gt_joints: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Scale the prediction until its bone from wrist to middle knuckle has the true length, then
    move wrist on wrist; no rotation. Both are [n, 21, 3] metres in HO-3D's order.

    As in the official script, a predicted bone of length 0 is not divided by, but its hand is
    multiplied by the true length.
    """
    pred, gt = np.asarray(pred_joints, np.float64), np.asarray(gt_joints, np.float64)
    bone = np.linalg.norm(pred[:, HO3D_KNUCKLE] - pred[:, HO3D_WRIST], axis=1)
    gt_bone = np.linalg.norm(gt[:, HO3D_KNUCKLE] - gt[:, HO3D_WRIST], axis=1)
    scaled = pred / np.where(bone > 0, bone, 1.0)[:, None, None] * gt_bone[:, None, None]
    return scaled - scaled[:, [HO3D_WRIST]] + gt[:, [HO3D_WRIST]]


def derived_mm(scores: Mapping[str, float]) -> dict[str, float]:
    """Official metrics by `USUAL_NAMES`: `pa_` is after similarity alignment, `st_` after HO-3D's
    scale and translation, `abs_` in absolute camera coordinates."""
    usual = {USUAL_NAMES[name]: value for name, value in scores.items()}
    return {name: value * 10 if name.endswith("_mm") else value for name, value in usual.items()}


@dataclass(frozen=True)
class Benchmark:
    """One official evaluation: joints [n, 21, 3] in its order and vertices [n, 778, 3], metres in
    its camera axes, n >= 1. A joints-only method passes 778 zero vertices, as it must submit them.
    """

    name: str
    num_samples: int  # of the official evaluation set
    skeleton: str  # joint order, a name of hand.skeleton.SKELETONS
    axes: str  # "opencv" (hand at z > 0) or "opengl" (z < 0)
    aligned: str  # prefix of the script's joint metrics after similarity alignment
    has_scale_trans: bool  # joints are scored after scale and translation too

    @property
    def score_names(self) -> tuple[str, ...]:
        """Official names, in the script's order."""
        joints = ["xyz", self.aligned, *["xyz_scale_trans_al"] * self.has_scale_trans]
        names = (*joints, "mesh", "mesh_al")
        return (*(f"{name}_{what}" for name in names for what in ("mean3d", "auc3d")), *F_NAMES)

    def score(
        self, pred_joints: Points, pred_verts: Points, gt_joints: Points, gt_verts: Points
    ) -> dict[str, float]:
        """The script's metrics, each the mean over the samples: cm, AUC and F as shares of 1."""
        values = self.per_sample_scores(pred_joints, pred_verts, gt_joints, gt_verts)
        return {name: float(of.mean()) for name, of in values.items()}

    def per_sample_scores(
        self, pred_joints: Points, pred_verts: Points, gt_joints: Points, gt_verts: Points
    ) -> dict[str, NDArray[np.float64]]:
        """What each sample adds to every metric of `score`: [n] float64 each. Joints and vertices
        are aligned separately, reflections allowed. Raises ValueError for unequal or bad arrays."""
        hands = as_hands(pred_joints, pred_verts, "pred_"), as_hands(gt_joints, gt_verts, "gt_")
        joints, verts = zip(*hands, strict=True)
        if len(joints[0]) != len(joints[1]):
            came = f"{len(joints[0])} predictions, {len(joints[1])} samples of the ground truth"
            raise ValueError(
                f"{came}: they are matched by their index, so one for each is required"
            )
        pred, gt = (torch.from_numpy(np.array(points, np.float64)) for points in joints)
        aligned = similarity_align(pred, gt)
        errors_m = [point_errors_m(each, gt).numpy() for each in (pred, aligned)]
        if self.has_scale_trans:
            errors_m.append(np.linalg.norm(scale_trans_align(*joints) - joints[1], axis=2))
        columns = [column for each in errors_m for column in _of_errors(each)]
        pieces = []
        for start in range(0, len(joints[0]), CHUNK):
            predicted, true = (points[start : start + CHUNK] for points in verts)
            part = mesh_errors(predicted, true, F_THRESHOLDS_M)
            f = [part.f[:, 0], part.f_al[:, 0], part.f[:, 1], part.f_al[:, 1]]
            pieces.append(np.stack([*_of_errors(part.verts_m), *_of_errors(part.verts_al_m), *f]))
        columns += list(np.concatenate(pieces, axis=1))
        return dict(zip(self.score_names, columns, strict=True))

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints in the benchmark's order."""
        return tuple(JOINT_NAMES[i] for i in joint_order("canonical", self.skeleton))

    def canonical_to_benchmark(
        self, joints_cam_m: NDArray[np.floating], verts_cam_m: NDArray[np.floating]
    ) -> JointsAndVerts:
        """From canonical joint order and OpenCV camera axes: [..., 21, 3] and [..., V, 3]."""
        order = list(joint_order("canonical", self.skeleton))
        axes = np.asarray(AXES[self.axes], joints_cam_m.dtype)
        return joints_cam_m[..., order, :] * axes, verts_cam_m * axes


FREIHAND = Benchmark("freihand", 3960, "freihand", "opencv", "xyz_al", has_scale_trans=False)
HO3D_V2 = Benchmark("ho3d_v2", 11524, "ho3d", "opengl", "xyz_procrustes_al", has_scale_trans=True)
HO3D_V3 = replace(HO3D_V2, name="ho3d_v3", num_samples=20137)
BENCHMARKS = {b.name: b for b in (FREIHAND, HO3D_V2, HO3D_V3)}


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
    joints = pred_joints_m, gt_joints_m
    pred, gt = (torch.from_numpy(np.array(points, np.float64)) for points in joints)
    raw = point_errors_m(pred, gt).mean(dim=0) * 1e3
    aligned = point_errors_m(similarity_align(pred, gt), gt).mean(dim=0) * 1e3
    errors = zip(names, raw.tolist(), aligned.tolist(), strict=True)
    return {name: {"abs_mm": abs_mm, "pa_mm": pa_mm} for name, abs_mm, pa_mm in errors}


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
