"""The official definitions once more, in plain float64 loops over scipy: an oracle for the batched
code."""

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import cKDTree


def align(truth, pred):
    mean_t, mean_p = truth.mean(0), pred.mean(0)
    t, p = truth - mean_t, pred - mean_p
    norm_t, norm_p = np.linalg.norm(t) + 1e-8, np.linalg.norm(p) + 1e-8
    rotation, scale = orthogonal_procrustes(t / norm_t, p / norm_p)
    return (p / norm_p) @ rotation.T * scale * norm_t + mean_t


def auc(errors):
    thresholds = np.linspace(0.0, 0.05, 100)
    areas = []
    for k in range(errors.shape[1]):
        pck = [np.mean(errors[:, k] <= t) for t in thresholds]
        areas.append(np.trapezoid(pck, thresholds) / 0.05)
    return float(np.mean(areas))


def f_score(truth, pred, threshold):
    to_pred = cKDTree(pred).query(truth)[0]
    to_truth = cKDTree(truth).query(pred)[0]
    recall, precision = np.mean(to_pred < threshold), np.mean(to_truth < threshold)
    return 2 * recall * precision / (recall + precision) if recall + precision > 0 else 0.0


def all_metrics(pred_joints, pred_verts, gt_joints, gt_verts, root=None):
    lists = {k: [] for k in ("j", "v", "ja", "va", "f5", "f15", "fa5", "fa15")}
    for pj, pv, gj, gv in zip(pred_joints, pred_verts, gt_joints, gt_verts, strict=True):
        ja, va = align(gj, pj), align(gv, pv)
        lists["ja"].append(np.linalg.norm(ja - gj, axis=1))
        lists["va"].append(np.linalg.norm(va - gv, axis=1))
        lists["fa5"].append(f_score(gv, va, 0.005))
        lists["fa15"].append(f_score(gv, va, 0.015))
        if root is not None:
            pv, gv, pj, gj = pv - pj[root], gv - gj[root], pj - pj[root], gj - gj[root]
        lists["j"].append(np.linalg.norm(pj - gj, axis=1))
        lists["v"].append(np.linalg.norm(pv - gv, axis=1))
        lists["f5"].append(f_score(gv, pv, 0.005))
        lists["f15"].append(f_score(gv, pv, 0.015))
    a = {k: np.array(v) for k, v in lists.items()}
    return {
        "pa_mpjpe_mm": a["ja"].mean() * 1e3,
        "pa_mpvpe_mm": a["va"].mean() * 1e3,
        "mpjpe_mm": a["j"].mean() * 1e3,
        "mpvpe_mm": a["v"].mean() * 1e3,
        "pa_f5": a["fa5"].mean(),
        "pa_f15": a["fa15"].mean(),
        "f5": a["f5"].mean(),
        "f15": a["f15"].mean(),
        "pa_auc_joints": auc(a["ja"]),
        "pa_auc_verts": auc(a["va"]),
        "auc_joints": auc(a["j"]),
        "auc_verts": auc(a["v"]),
        "num_samples": len(a["j"]),
        "num_meshes": len(a["v"]),
    }
