"""The official HO-3D evaluations, versions 2 and 3: HO-3D's joint order, OpenGL camera axes."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from handmim.benchmarks.official import (
    F_NAMES,
    Benchmark,
    Points,
    SampleScores,
    Scores,
    as_pair,
    joint_scores,
    mean_scores,
    mesh_scores,
    per_sample_errors,
)
from handmim.hand.skeleton import NUM_JOINTS

# Wrist and middle knuckle in HO-3D's order: the bone that sets the scale.
WRIST, KNUCKLE = 0, 4

SCORE_NAMES = (
    "xyz_mean3d", "xyz_auc3d", "xyz_procrustes_al_mean3d", "xyz_procrustes_al_auc3d",
    "xyz_scale_trans_al_mean3d", "xyz_scale_trans_al_auc3d",
    "mesh_mean3d", "mesh_auc3d", "mesh_al_mean3d", "mesh_al_auc3d", *F_NAMES,
)  # fmt: skip


def scale_trans_align(
    pred_joints: NDArray[np.floating], gt_joints: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Scale the prediction so that its bone from wrist to middle knuckle has the truth's length,
    then move wrist on wrist; no rotation.

    As in the official script, a predicted bone of length 0 is not divided by, but the truth's
    length (about 0.1) is multiplied all the same: such a hand shrinks tenfold.

    Args:
        pred_joints, gt_joints: [n, 21, 3] metres, HO-3D's order.
    """
    pred, gt = np.asarray(pred_joints, np.float64), np.asarray(gt_joints, np.float64)
    bone = np.linalg.norm(pred[:, KNUCKLE] - pred[:, WRIST], axis=1)
    gt_bone = np.linalg.norm(gt[:, KNUCKLE] - gt[:, WRIST], axis=1)
    scaled = pred / np.where(bone > 0, bone, 1.0)[:, None, None] * gt_bone[:, None, None]
    return scaled - scaled[:, [WRIST]] + gt[:, [WRIST]]


def per_sample_scores(
    pred_joints: Points, pred_verts: Points, gt_joints: Points, gt_verts: Points
) -> SampleScores:
    """What each sample adds to every figure of `score`: [n] each."""
    errors = per_sample_errors(pred_joints, pred_verts, gt_joints, gt_verts)
    pred, gt = as_pair("joints", pred_joints, gt_joints, NUM_JOINTS)
    scale_trans_m = np.linalg.norm(scale_trans_align(pred, gt) - gt, axis=2)
    return {
        **joint_scores("xyz", errors.joints_m),
        **joint_scores("xyz_procrustes_al", errors.joints_al_m),
        **joint_scores("xyz_scale_trans_al", scale_trans_m),
        **mesh_scores(errors),
    }


def score(pred_joints: Points, pred_verts: Points, gt_joints: Points, gt_verts: Points) -> Scores:
    """The figures of HO-3D's script under its names: means in cm, AUC and F as shares of 1.

    A joints-only method passes 778 zero vertices, as it must submit them: its mesh figures are
    those of a hand collapsed to a point.

    Args:
        pred_joints, gt_joints: [n, 21, 3] metres, HO-3D's order, OpenGL camera axes; n >= 1.
        pred_verts, gt_verts: [n, 778, 3].
    Returns: names as in `SCORE_NAMES`, in that order.
    Raises: ValueError naming samples: other shapes, counts that differ, values not finite, none.
    """
    return mean_scores(per_sample_scores(pred_joints, pred_verts, gt_joints, gt_verts))


HO3D_V2 = Benchmark(
    name="ho3d_v2",
    num_samples=11524,
    skeleton="ho3d",
    axes="opengl",
    score_names=SCORE_NAMES,
    score=score,
    per_sample_scores=per_sample_scores,
)
HO3D_V3 = replace(HO3D_V2, name="ho3d_v3", num_samples=20137)
