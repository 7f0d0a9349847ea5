"""Both official evaluations once more: one sample after another, plain float64, scipy; an oracle
for handmim.evaluation.benchmarks. Arrays are [n, 21, 3] and [n, 778, 3] metres in the form of the
benchmark."""

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import cKDTree

THRESHOLDS = np.linspace(0.0, 0.05, 100)


def procrustes(gt, pred):
    """Best similarity, reflections allowed, norms raised by 1e-8."""
    gt_mean, pred_mean = gt.mean(axis=0), pred.mean(axis=0)
    gt_size = np.linalg.norm(gt - gt_mean) + 1e-8
    pred_size = np.linalg.norm(pred - pred_mean) + 1e-8
    pred_unit = (pred - pred_mean) / pred_size
    rotation, scale = orthogonal_procrustes((gt - gt_mean) / gt_size, pred_unit)
    return pred_unit @ rotation.T * scale * gt_size + gt_mean


def scale_translation(gt, pred):
    """HO-3D order: bone 0-4 gets the truth's length, then wrist on wrist; no division by zero."""
    bone = np.sqrt(((pred[4] - pred[0]) ** 2).sum())
    if bone > 0:
        pred = pred / bone
    pred = pred * np.sqrt(((gt[4] - gt[0]) ** 2).sum())
    return pred - pred[0] + gt[0]


def distances(gt, pred):
    return np.sqrt(((gt - pred) ** 2).sum(axis=1))


def f_score(gt, pred, threshold):
    near_gt = cKDTree(gt).query(pred)[0] < threshold
    near_pred = cKDTree(pred).query(gt)[0] < threshold
    a, b = near_gt.sum() / len(near_gt), near_pred.sum() / len(near_pred)
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def mean_and_auc(errors):
    """[n, K] metres -> mean in cm over samples, then keypoints; AUC per keypoint, then mean."""
    means, areas = [], []
    for k in range(errors.shape[1]):
        means.append(errors[:, k].mean())
        share = (errors[:, k, None] <= THRESHOLDS).mean(axis=0)
        areas.append(((share[1:] + share[:-1]) / 2 * np.diff(THRESHOLDS)).sum() / 0.05)
    return float(np.mean(means)) * 100, float(np.mean(areas))


def all_scores(pred_joints, pred_verts, gt_joints, gt_verts):
    """Every figure of both scripts, by HO-3D's names."""
    errors = {k: [] for k in ("xyz", "xyz_procrustes_al", "xyz_scale_trans_al", "mesh", "mesh_al")}
    f = {k: [] for k in ("f_score_5", "f_al_score_5", "f_score_15", "f_al_score_15")}
    for arrays in zip(pred_joints, pred_verts, gt_joints, gt_verts, strict=True):
        pj, pv, gj, gv = (np.array(a, np.float64) for a in arrays)
        aligned = procrustes(gv, pv)
        errors["xyz"].append(distances(gj, pj))
        errors["xyz_procrustes_al"].append(distances(gj, procrustes(gj, pj)))
        errors["xyz_scale_trans_al"].append(distances(gj, scale_translation(gj, pj)))
        errors["mesh"].append(distances(gv, pv))
        errors["mesh_al"].append(distances(gv, aligned))
        for mm in (5, 15):
            f[f"f_score_{mm}"].append(f_score(gv, pv, mm / 1000))
            f[f"f_al_score_{mm}"].append(f_score(gv, aligned, mm / 1000))
    scores = {}
    for name, rows in errors.items():
        mean, auc = mean_and_auc(np.array(rows))
        scores |= {f"{name}_mean3d": mean, f"{name}_auc3d": auc}
    return scores | {name: float(np.mean(values)) for name, values in f.items()}


def ho3d(pred_joints, pred_verts, gt_joints, gt_verts):
    return all_scores(pred_joints, pred_verts, gt_joints, gt_verts)


def freihand(pred_joints, pred_verts, gt_joints, gt_verts):
    scores = all_scores(pred_joints, pred_verts, gt_joints, gt_verts)
    return {
        name.replace("procrustes_", ""): value
        for name, value in scores.items()
        if "scale_trans" not in name
    }
