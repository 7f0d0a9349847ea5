"""The official FreiHAND evaluation: 3960 samples, canonical joint order, OpenCV camera axes."""

from handmim.benchmarks.official import (
    F_NAMES,
    Benchmark,
    Points,
    SampleScores,
    Scores,
    joint_scores,
    mean_scores,
    mesh_scores,
    per_sample_errors,
)

SCORE_NAMES = (
    "xyz_mean3d", "xyz_auc3d", "xyz_al_mean3d", "xyz_al_auc3d",
    "mesh_mean3d", "mesh_auc3d", "mesh_al_mean3d", "mesh_al_auc3d", *F_NAMES,
)  # fmt: skip


def per_sample_scores(
    pred_joints: Points, pred_verts: Points, gt_joints: Points, gt_verts: Points
) -> SampleScores:
    """What each sample adds to every figure of `score`: [n] each."""
    errors = per_sample_errors(pred_joints, pred_verts, gt_joints, gt_verts)
    return {
        **joint_scores("xyz", errors.joints_m),
        **joint_scores("xyz_al", errors.joints_al_m),
        **mesh_scores(errors),
    }


def score(pred_joints: Points, pred_verts: Points, gt_joints: Points, gt_verts: Points) -> Scores:
    """The figures of FreiHAND's script under its names: means in cm, AUC and F as shares of 1.

    A joints-only method passes 778 zero vertices, as it must submit them: its mesh figures are
    those of a hand collapsed to a point.

    Args:
        pred_joints, gt_joints: [n, 21, 3] metres, FreiHAND's order, OpenCV camera axes; n >= 1.
        pred_verts, gt_verts: [n, 778, 3].
    Returns: names as in `SCORE_NAMES`, in that order.
    Raises: ValueError naming samples: other shapes, counts that differ, values not finite, none.
    """
    return mean_scores(per_sample_scores(pred_joints, pred_verts, gt_joints, gt_verts))


FREIHAND = Benchmark(
    name="freihand",
    num_samples=3960,
    skeleton="freihand",
    axes="opencv",
    score_names=SCORE_NAMES,
    score=score,
    per_sample_scores=per_sample_scores,
)
