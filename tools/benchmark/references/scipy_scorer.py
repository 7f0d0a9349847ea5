"""The official scores one sample after another, in numpy and scipy: the obvious way to write them.

Each sample's distances to nearest neighbours are searched once and serve both thresholds.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Figures = dict[str, float]

F_THRESHOLDS_M = (0.005, 0.015)
AUC_THRESHOLDS_M = np.linspace(0.0, 0.05, 100)


def scipy_parts() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """scipy's orthogonal Procrustes solver and k-d tree.

    Raises: ImportError saying where scipy comes from.
    """
    try:
        from scipy.linalg import orthogonal_procrustes
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError(
            "the reference scorer needs scipy: pip install -e '.[dev]', or another suite than score"
        ) from error
    return orthogonal_procrustes, cKDTree


def align(pred: Array, gt: Array) -> Array:
    """The best similarity, reflections allowed: [P, 3] twice -> [P, 3]."""
    orthogonal_procrustes, _ = scipy_parts()
    pred_mean, gt_mean = pred.mean(axis=0), gt.mean(axis=0)
    pred_norm = np.linalg.norm(pred - pred_mean) + 1e-8
    gt_norm = np.linalg.norm(gt - gt_mean) + 1e-8
    unit = (pred - pred_mean) / pred_norm
    turn, scale = orthogonal_procrustes((gt - gt_mean) / gt_norm, unit)
    aligned: Array = unit @ turn.T * scale * gt_norm + gt_mean
    return aligned


def aligned_mm(pred: Array, gt: Array) -> float:
    """Mean distance after `align`."""
    return float(np.linalg.norm(align(pred, gt) - gt, axis=1).mean()) * 1e3


def f_scores(pred: Array, gt: Array) -> list[float]:
    """At 5 and 15 mm: [P, 3] and [Q, 3] metres."""
    _, cKDTree = scipy_parts()
    to_gt, to_pred = cKDTree(gt).query(pred)[0], cKDTree(pred).query(gt)[0]
    scores = []
    for threshold in F_THRESHOLDS_M:
        precision, recall = np.mean(to_gt < threshold), np.mean(to_pred < threshold)
        both = precision + recall
        scores.append(float(2 * precision * recall / both) if both > 0 else 0.0)
    return scores


def auc(errors_m: Array) -> float:
    """Area under the share of hits, threshold by threshold, of [P] errors."""
    share = (errors_m[:, None] <= AUC_THRESHOLDS_M).mean(axis=0)
    steps = np.diff(AUC_THRESHOLDS_M)
    return float(((share[1:] + share[:-1]) / 2 * steps).sum() / 0.05)


def scale_and_move(pred: Array, gt: Array) -> Array:
    """HO-3D's other alignment: the bone from joint 0 to joint 4 as long as the truth's, then joint
    0 on joint 0."""
    length = np.linalg.norm(gt[4] - gt[0]) / np.linalg.norm(pred[4] - pred[0])
    moved: Array = (pred - pred[0]) * length + gt[0]
    return moved


def official(
    pred_joints: Array, pred_verts: Array, gt_joints: Array, gt_verts: Array, *, is_ho3d: bool
) -> Figures:
    """Every figure of FreiHAND's or HO-3D's script: arrays [n, 21, 3] and [n, 778, 3] metres."""
    procrustes = "xyz_procrustes_al" if is_ho3d else "xyz_al"
    rows: dict[str, list[float]] = {}

    def add(name: str, errors_m: Array) -> None:
        rows.setdefault(f"{name}_mean3d", []).append(float(errors_m.mean()) * 100)
        rows.setdefault(f"{name}_auc3d", []).append(auc(errors_m))

    for pj, pv, gj, gv in zip(pred_joints, pred_verts, gt_joints, gt_verts, strict=True):
        aligned = align(pv, gv)
        add("xyz", np.linalg.norm(pj - gj, axis=1))
        add(procrustes, np.linalg.norm(align(pj, gj) - gj, axis=1))
        if is_ho3d:
            add("xyz_scale_trans_al", np.linalg.norm(scale_and_move(pj, gj) - gj, axis=1))
        add("mesh", np.linalg.norm(pv - gv, axis=1))
        add("mesh_al", np.linalg.norm(aligned - gv, axis=1))
        for name, points in (("f_score", pv), ("f_al_score", aligned)):
            for mm, value in zip((5, 15), f_scores(points, gv), strict=True):
                rows.setdefault(f"{name}_{mm}", []).append(value)
    return {name: float(np.mean(values)) for name, values in rows.items()}


def root_relative(
    root: int, pred_joints: Array, pred_verts: Array, gt_joints: Array, gt_verts: Array
) -> Figures:
    """What training reports: errors in mm relative to a root joint and after alignment, AUC, F."""
    roots = pred_joints[:, [root]], gt_joints[:, [root]]
    moved = [pred_joints - roots[0], pred_verts - roots[0]]
    moved += [gt_joints - roots[1], gt_verts - roots[1]]
    plain = official(moved[0], moved[1], moved[2], moved[3], is_ho3d=False)
    return {
        "mpjpe_mm": plain["xyz_mean3d"] * 10,
        "pa_mpjpe_mm": plain["xyz_al_mean3d"] * 10,
        "mpvpe_mm": plain["mesh_mean3d"] * 10,
        "pa_mpvpe_mm": plain["mesh_al_mean3d"] * 10,
        "auc_joints": plain["xyz_auc3d"],
        "pa_auc_joints": plain["xyz_al_auc3d"],
        "auc_verts": plain["mesh_auc3d"],
        "pa_auc_verts": plain["mesh_al_auc3d"],
        "f5": plain["f_score_5"],
        "f15": plain["f_score_15"],
        "pa_f5": plain["f_al_score_5"],
        "pa_f15": plain["f_al_score_15"],
    }
