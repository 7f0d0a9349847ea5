import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.score import f_scores
from handmim.metrics.neighbours import squared_limits
from handmim.metrics.pose import KEYS, HandMetrics, sample_auc

_PATH = Path(__file__).parent.parent / "golden" / "reference_metrics.py"
_SPEC = importlib.util.spec_from_file_location("reference_metrics", _PATH)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)


VERT_KEYS = {
    "pa_mpvpe_mm", "mpvpe_mm", "pa_f5", "pa_f15", "f5", "f15", "pa_auc_verts", "auc_verts",
}  # fmt: skip


def auc(errors_m):
    return float(sample_auc(errors_m).mean())


def hands(num: int, noise_m: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    joints, verts = rng.normal(0, 0.04, (num, 21, 3)), rng.normal(0, 0.04, (num, 200, 3))
    shift = rng.normal(0, 0.02, (num, 1, 3))
    pred_joints = joints * 1.1 + shift + rng.normal(0, noise_m, joints.shape)
    pred_verts = verts * 1.1 + shift + rng.normal(0, noise_m, verts.shape)
    return pred_joints, pred_verts, joints, verts


def scored(arrays, root=None, batch=7):
    metrics = HandMetrics(root_joint=root)
    tensors = [torch.from_numpy(a) for a in arrays]
    for start in range(0, len(tensors[0]), batch):
        metrics.update(*(t[start : start + batch] for t in tensors))
    return metrics.compute()


@pytest.mark.parametrize("root", [None, 9])
@pytest.mark.parametrize("noise_m", [0.001, 0.006, 0.03])
def test_every_metric_equals_the_independent_reference(root, noise_m):
    arrays = hands(20, noise_m)
    ours, theirs = scored(arrays, root), reference.all_metrics(*arrays, root=root)
    assert set(ours) == set(KEYS) == set(theirs)
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key


def test_mirrored_hands_score_zero_after_alignment():
    # The official alignment allows reflections.
    _, _, joints, verts = hands(3, 0.0)
    ours = scored((joints * [-1, 1, 1], verts * [-1, 1, 1], joints, verts))
    assert ours["pa_mpjpe_mm"] < 1e-4  # the 1e-8 in the norms leaves 1e-5 mm
    assert ours["pa_f5"] == 1.0
    assert ours["mpjpe_mm"] > 10


def test_the_share_of_mirrored_samples_is_known():
    joints, verts, *gt = (torch.from_numpy(a) for a in hands(20, 0.006))
    metrics = HandMetrics(root_joint=9)
    metrics.update(joints, verts, *gt)
    assert metrics.mirrored_share() == 0
    metrics.update(joints * torch.tensor([1, 1, -1]), verts, *gt)
    assert metrics.mirrored_share() == 0.5


def test_collapsed_prediction_is_finite_and_lands_on_the_centroid():
    _, _, joints, verts = hands(2, 0.0)
    ours = scored((np.zeros_like(joints), np.zeros_like(verts), joints, verts))
    expected = np.linalg.norm(joints - joints.mean(axis=1, keepdims=True), axis=2).mean() * 1e3
    assert ours["pa_mpjpe_mm"] == pytest.approx(expected, rel=1e-5)


def test_identical_hands():
    _, _, joints, verts = hands(2, 0.0)
    ours = scored((joints, verts, joints, verts))
    assert ours["mpjpe_mm"] == 0.0
    assert ours["auc_joints"] == pytest.approx(1.0)
    assert ours["f5"] == 1.0
    # an exact fit may leave 1e-17, which misses the threshold 0
    assert 1 - 1 / 198 - 1e-9 <= ours["pa_auc_joints"] <= 1 + 1e-9


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nan_is_refused_by_sample_and_nothing_scored_is_an_error():
    arrays = [a.copy() for a in hands(3, 0.001)]
    arrays[0][1, 4, 2] = np.nan
    with pytest.raises(ValueError, match=r"not finite in samples \[1\] of 3"):
        scored(arrays)
    with pytest.raises(ValueError, match="evaluation set is empty"):
        HandMetrics(root_joint=None).compute()


def test_per_sample_errors_are_kept():
    metrics = HandMetrics(root_joint=9)
    metrics.update(*(torch.from_numpy(a) for a in hands(4, 0.002)))
    e = metrics.per_sample()
    assert e["joints"].shape == (4, 21)
    assert e["f_pa"].shape == (4, 2)
    assert e["joints"][:, 9].abs().max() < 1e-12


def test_auc_hand_values():
    # All errors 25.3 mm lie between thresholds 50 (25.25) and 51 (25.76): 49 full steps and half a
    # ramp of 99.
    assert float(auc(torch.full((4, 3), 0.0253))) == pytest.approx(48.5 / 99, abs=1e-9)
    assert float(auc(torch.full((4, 3), 0.06))) == 0.0
    assert float(auc(torch.zeros(4, 3))) == pytest.approx(1.0)


def test_f_score_hand_value():
    # Two of three predicted points have a neighbour within 5 mm, one of two true points has: 2
    # (2/3)(1/2) / (7/6)
    gt = np.array([[[0.0, 0, 0], [1.0, 0, 0]]])
    pred = np.array([[[0.001, 0, 0], [0.002, 0, 0], [0.5, 0, 0]]])
    f = f_scores(pred, gt, (0.005,)).item()
    assert f == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))


def test_samples_without_vertices_count_with_their_joints_only():
    arrays = hands(6, 0.004)
    tensors = [torch.from_numpy(a) for a in arrays]
    has_verts = torch.tensor([True, False, True, True, False, False])
    some, none = HandMetrics(root_joint=9), HandMetrics(root_joint=9)
    some.update(*tensors, has_verts)
    none.update(*tensors, torch.zeros(6, dtype=torch.bool))
    whole, part = scored(arrays, 9), scored([a[has_verts.numpy()] for a in arrays], 9)
    metrics = some.compute()
    assert metrics["num_meshes"] == 3
    for key in set(KEYS) - {"num_samples", "num_meshes"}:
        expected = part if key in VERT_KEYS else whole
        assert metrics[key] == pytest.approx(expected[key], rel=1e-12), key
    assert set(none.compute()) == set(KEYS) - set(VERT_KEYS)


def plain_f_scores(pred, gt, thresholds):
    """Every pair of points, in numpy."""
    scores = np.zeros((len(pred), len(thresholds)))
    for i, (a, b) in enumerate(zip(pred, gt, strict=True)):
        d = a[:, None] - b[None]
        d = np.sqrt(d[..., 0] * d[..., 0] + d[..., 1] * d[..., 1] + d[..., 2] * d[..., 2])
        for k, threshold in enumerate(thresholds):
            x, y = (d < threshold).any(axis=1).mean(), (d < threshold).any(axis=0).mean()
            scores[i, k] = 2 * x * y / (x + y) if x + y > 0 else 0.0
    return scores


def adversarial_clouds():
    rng = np.random.default_rng(0)
    cloud = rng.normal(0, 0.04, (3, 120, 3)) * [1.0, 0.5, 0.3]
    lattice = np.stack(np.meshgrid(*3 * [np.arange(5.0)]), axis=-1).reshape(1, -1, 3)
    outlier = cloud.copy()
    outlier[:, 7] = 1e3
    step = np.nextafter(0.005, 0)
    below = np.zeros((1, 3, 3))
    below[0] = [[step, 0, 0], [0, 0.3 + 0.005, 0], [0.6, 0, -step]]
    at = np.array([[[0, 0, 0], [0, 0.3, 0], [0.6, 0, 0]]])
    tiny = rng.normal(0, 1, (2, 50, 3)) * 1e-170
    return {
        "near": (cloud + rng.normal(0, 0.004, cloud.shape), cloud),
        "other_index": (cloud[:, ::-1] + 0.003, cloud),
        "other_count": (cloud[:, :37] + 0.002, cloud),
        "one_point": (cloud[:, :1], cloud),
        "one_point_each": (cloud[:, :1], cloud[:, :1] + 0.002),
        "along_y": (cloud[..., [1, 0, 2]] + 0.004, cloud[..., [1, 0, 2]]),
        "along_z": (cloud[..., [1, 2, 0]] - 0.004, cloud[..., [1, 2, 0]]),
        "far_apart": (cloud + np.array([0, 0, 5.0]), cloud),
        "side_by_side": (cloud + np.array([0.11, 0, 0]), cloud),
        "far_from_the_origin": (cloud + 1e6 + 0.003, cloud + 1e6),
        # neighbours exactly 1/256 apart, and lattices whose ties are up to rounding
        "exact_ties": (lattice / 256 + np.array([1 / 256, 0, 0]), lattice / 256),
        "rounded_ties": (lattice * 0.005 + np.array([0.0, 0.015, 0]), lattice * 0.005),
        "one_ulp_below": (below, at),
        "duplicates": (np.repeat(cloud[:, :20], 6, axis=1), np.tile(cloud[:, :30], (1, 4, 1))),
        "collapsed": (np.zeros_like(cloud), cloud),
        "collapsed_onto_a_point": (0 * cloud + cloud[:, 5:6], cloud),
        "both_collapsed": (np.zeros_like(cloud), np.zeros_like(cloud) + 0.004),
        "flat": (cloud * [1, 0, 0], cloud * [1, 0, 0] + 0.001),
        "outlier": (outlier, cloud),
        "outlier_in_both": (outlier + 0.003, outlier),
        "denormal": (tiny, tiny[:, ::-1].copy()),
    }


@pytest.mark.parametrize("name", adversarial_clouds())
@pytest.mark.parametrize(
    "thresholds", [(0.005, 0.015), (0.015, 1 / 256, 0.05, 1 / 256), (0.0, -1.0, np.inf, 1e-200)]
)
def test_f_scores_have_exactly_the_hits_of_all_pairs(name, thresholds):
    pred, gt = adversarial_clouds()[name]
    ours = f_scores(pred, gt, thresholds)
    np.testing.assert_allclose(ours, plain_f_scores(pred, gt, thresholds), atol=1e-15, rtol=0)
    swapped = f_scores(gt, pred, thresholds)
    np.testing.assert_allclose(swapped, ours, atol=1e-15, rtol=0)


def test_f_scores_of_many_random_clouds_of_all_sizes():
    rng = np.random.default_rng(1)
    for _ in range(150):
        p, q = rng.integers(1, 60, 2)
        size, shift = 10 ** rng.uniform(-3, 0, 3), 10 ** rng.uniform(-4, -0.5)
        gt = rng.normal(0, 1, (2, q, 3)) * size
        pred = rng.normal(0, 1, (2, p, 3)) * size + rng.normal(0, shift, 3)
        thresholds = tuple(10 ** rng.uniform(-3.5, -0.5, 3))
        ours = f_scores(pred, gt, thresholds)
        np.testing.assert_allclose(ours, plain_f_scores(pred, gt, thresholds), atol=1e-15, rtol=0)


def test_a_hit_is_strictly_nearer_and_ties_are_misses():
    point = np.zeros((1, 1, 3))
    for threshold in (0.005, 0.015, 1 / 3, 7e-9):
        limit = squared_limits((threshold,))[1].item()
        assert math.sqrt(limit) < threshold <= math.sqrt(math.nextafter(limit, 1))
        for distance, hit in ((threshold, 0.0), (math.nextafter(threshold, 0), 1.0)):
            assert f_scores(point, point + np.array([0, distance, 0]), (threshold,)).item() == hit


def test_f_scores_take_what_is_not_finite_or_empty():
    cloud = hands(2, 0.0)[3]
    bad = cloud.copy()
    bad[0, :100, 1] = np.nan
    bad[1, 3] = np.inf
    f = f_scores(bad, cloud, (1e-6,))
    # 100 of 200 hit, and one fewer than all
    assert f.flatten().tolist() == pytest.approx([0.5, 199 / 200])
    assert f_scores(cloud, bad, (1e-6,)).tolist() == f.tolist()
    assert f_scores(np.full_like(cloud, np.nan), cloud, (0.005, 0.015)).sum() == 0
    assert f_scores(cloud[:0], cloud[:0], (0.005, 0.015)).shape == (0, 2)
    assert f_scores(cloud, cloud, ()).shape == (2, 0)


def test_auc_counts_an_error_at_a_threshold_as_a_hit():
    thresholds = np.linspace(0.0, 0.05, 100)
    at, above = torch.from_numpy(thresholds), torch.from_numpy(np.nextafter(thresholds, 1))
    # hits from threshold k on: 99 - k steps and half a step before them, but for k = 0
    expected = np.append(np.minimum(99.5 - np.arange(100), 99), 0.0) / 99
    np.testing.assert_allclose(sample_auc(at[:, None]), expected[:100], atol=1e-12)
    np.testing.assert_allclose(sample_auc(above[:, None]), expected[1:], atol=1e-12)
    errors = torch.rand(7, 5, dtype=torch.float64) * 0.07
    assert float(auc(errors)) == pytest.approx(float(sample_auc(errors).mean()), abs=1e-15)
