"""The official FreiHAND and HO-3D evaluations: errors of every sample in float64, and their means
under the names and units of the official scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.geometry.align import similarity_align
from handmim.hand.arrays import NUM_VERTS
from handmim.hand.skeleton import JOINT_NAMES, NUM_JOINTS, joint_order
from handmim.metrics.pose import F_THRESHOLDS_M, mesh_errors, point_errors_m, sample_auc

Points = NDArray[np.floating] | Tensor
AnyPoints = TypeVar("AnyPoints", NDArray[np.floating], Tensor)
Scores = dict[str, float]
SampleScores = dict[str, NDArray[np.float64]]

# 64 samples of 778 points in float64 are 1.2 MB: every pass over them stays in a core's cache.
CHUNK = 64
# Maps OpenCV camera axes to these; each is its own inverse.
AXES = {"opencv": (1.0, 1.0, 1.0), "opengl": (1.0, -1.0, -1.0)}
# Wrist and middle knuckle in HO-3D's order: the bone that sets the scale.
HO3D_WRIST, HO3D_KNUCKLE = 0, 4

F_NAMES = ("f_score_5", "f_al_score_5", "f_score_15", "f_al_score_15")
# Names that papers and our other reports use; lengths are cm in the official scripts, mm here.
USUAL_NAMES = {
    "xyz_mean3d": "abs_mpjpe_mm",
    "xyz_al_mean3d": "pa_mpjpe_mm",
    "xyz_procrustes_al_mean3d": "pa_mpjpe_mm",
    "xyz_scale_trans_al_mean3d": "st_mpjpe_mm",
    "mesh_mean3d": "abs_mpvpe_mm",
    "mesh_al_mean3d": "pa_mpvpe_mm",
    "xyz_auc3d": "abs_auc_joints",
    "xyz_al_auc3d": "pa_auc_joints",
    "xyz_procrustes_al_auc3d": "pa_auc_joints",
    "xyz_scale_trans_al_auc3d": "st_auc_joints",
    "mesh_auc3d": "abs_auc_verts",
    "mesh_al_auc3d": "pa_auc_verts",
    "f_score_5": "abs_f5",
    "f_al_score_5": "pa_f5",
    "f_score_15": "abs_f15",
    "f_al_score_15": "pa_f15",
}


def as_numpy(points: Points) -> NDArray[np.floating]:
    """An array, or a tensor of any device and precision, as an array; copied only where needed."""
    if not isinstance(points, Tensor):
        return np.asarray(points)
    points = points.detach().cpu()
    return (points.float() if points.dtype == torch.bfloat16 else points).numpy()


def as_points(name: str, points: Points, num_points: int) -> NDArray[np.floating]:
    """`as_numpy` of [n, num_points, 3] finite values, n >= 1; else ValueError, naming samples."""
    array = as_numpy(points)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {array.dtype}, floats are required")
    if array.ndim != 3 or array.shape[1:] != (num_points, 3):
        hint = "; only MANO's 778 vertices are scored" if num_points == NUM_VERTS else ""
        raise ValueError(f"{name} is {array.shape}, [n, {num_points}, 3] is required{hint}")
    if not len(array):
        raise ValueError(f"{name} holds no samples: there is nothing to score")
    bad = not_finite(array)
    if len(bad):
        raise ValueError(
            f"{name} is not finite in samples {bad[:5].tolist()} ({len(bad)} of {len(array)})"
        )
    return array


def not_finite(array: NDArray[np.floating]) -> NDArray[np.intp]:
    """Indices of samples that hold a NaN or an infinity: [n, points, 3] -> [k]."""
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(array.sum(axis=(1, 2))))
    return suspects[~np.isfinite(array[suspects]).all(axis=(1, 2))]


def as_pair(
    name: str, pred: Points, gt: Points, num_points: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """`as_points` of prediction and ground truth, of which there must be equally many."""
    pair = as_points(f"pred_{name}", pred, num_points), as_points(f"gt_{name}", gt, num_points)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(
            f"pred_{name} holds {len(pair[0])} samples, gt_{name} {len(pair[1])}: samples are "
            "matched by their index, so there must be one prediction for each"
        )
    return pair


def _of_errors(errors_m: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Mean in cm and AUC of every sample: [n, P] metres -> two of [n]."""
    return [errors_m.mean(axis=1) * 100, sample_auc(torch.from_numpy(errors_m)).numpy()]


def _mesh_columns(verts: Sequence[NDArray[np.floating]]) -> list[NDArray[np.float64]]:
    """Mean and AUC as they are and aligned, then `F_NAMES`, of every sample of a pair: eight of
    [n]."""
    pieces = []
    for start in range(0, len(verts[0]), CHUNK):
        pred, gt = (points[start : start + CHUNK] for points in verts)
        part = mesh_errors(pred, gt, F_THRESHOLDS_M)
        f = [part.f[:, 0], part.f_al[:, 0], part.f[:, 1], part.f_al[:, 1]]
        pieces.append(np.stack([*_of_errors(part.verts_m), *_of_errors(part.verts_al_m), *f]))
    return list(np.concatenate(pieces, axis=1))


def scale_trans_align(
    pred_joints: NDArray[np.floating], gt_joints: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Scale the prediction until its bone from wrist to middle knuckle has the true length, then
    move wrist on wrist; no rotation. Both are [n, 21, 3] metres in HO-3D's order.

    As in the official script, a predicted bone of length 0 shrinks its hand tenfold: it is not
    divided by, but multiplied by the true length.
    """
    pred, gt = np.asarray(pred_joints, np.float64), np.asarray(gt_joints, np.float64)
    bone = np.linalg.norm(pred[:, HO3D_KNUCKLE] - pred[:, HO3D_WRIST], axis=1)
    gt_bone = np.linalg.norm(gt[:, HO3D_KNUCKLE] - gt[:, HO3D_WRIST], axis=1)
    scaled = pred / np.where(bone > 0, bone, 1.0)[:, None, None] * gt_bone[:, None, None]
    return scaled - scaled[:, [HO3D_WRIST]] + gt[:, [HO3D_WRIST]]


def mean_scores(per_sample: Mapping[str, NDArray[np.floating]]) -> Scores:
    """Every official metric is the mean of its samples' values, the AUC too."""
    return {name: float(values.mean()) for name, values in per_sample.items()}


def derived_mm(scores: Mapping[str, float]) -> Scores:
    """Official metrics, no others, under `USUAL_NAMES`.

    `pa_` is after similarity alignment, `st_` after HO-3D's scale and translation, `abs_` in
    absolute camera coordinates; `mpjpe_mm` stands for the root-relative error elsewhere.
    """
    if unknown := sorted(set(scores) - set(USUAL_NAMES)):
        raise ValueError(f"{unknown} are no official metrics of FreiHAND or HO-3D")
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
    ) -> Scores:
        """The script's metrics under its names: means in cm, AUC and F as shares of 1."""
        return mean_scores(self.per_sample_scores(pred_joints, pred_verts, gt_joints, gt_verts))

    def per_sample_scores(
        self, pred_joints: Points, pred_verts: Points, gt_joints: Points, gt_verts: Points
    ) -> SampleScores:
        """What each sample adds to every metric of `score`: [n] float64 each.

        Joints and vertices are aligned separately, reflections allowed. Raises ValueError as
        `as_pair`, and for different numbers of joints and vertices.
        """
        joints = as_pair("joints", pred_joints, gt_joints, NUM_JOINTS)
        verts = as_pair("verts", pred_verts, gt_verts, NUM_VERTS)
        if len(joints[0]) != len(verts[0]):
            raise ValueError(f"{len(joints[0])} samples of joints and {len(verts[0])} of vertices")
        pred, gt = (torch.from_numpy(np.array(points, np.float64)) for points in joints)
        aligned = similarity_align(pred, gt)
        errors_m = [point_errors_m(each, gt).numpy() for each in (pred, aligned)]
        if self.has_scale_trans:
            errors_m.append(np.linalg.norm(scale_trans_align(*joints) - joints[1], axis=2))
        columns = [column for each in errors_m for column in _of_errors(each)]
        columns += _mesh_columns(verts)
        return dict(zip(self.score_names, columns, strict=True))

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints in the benchmark's order."""
        return tuple(JOINT_NAMES[i] for i in joint_order("canonical", self.skeleton))

    def canonical_to_benchmark(
        self, joints_cam_m: AnyPoints, verts_cam_m: AnyPoints
    ) -> tuple[AnyPoints, AnyPoints]:
        """From canonical joint order and OpenCV camera axes: [..., 21, 3] and [..., V, 3]."""
        order = list(joint_order("canonical", self.skeleton))
        return self._flipped(joints_cam_m[..., order, :]), self._flipped(verts_cam_m)

    def _flipped(self, points: AnyPoints) -> AnyPoints:
        if isinstance(points, Tensor):
            return points * points.new_tensor(AXES[self.axes])
        return points * np.asarray(AXES[self.axes], points.dtype)


FREIHAND = Benchmark("freihand", 3960, "freihand", "opencv", "xyz_al", has_scale_trans=False)
HO3D_V2 = Benchmark("ho3d_v2", 11524, "ho3d", "opengl", "xyz_procrustes_al", has_scale_trans=True)
HO3D_V3 = replace(HO3D_V2, name="ho3d_v3", num_samples=20137)
BENCHMARKS = {b.name: b for b in (FREIHAND, HO3D_V2, HO3D_V3)}
