import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from handmim.metrics.fscore import f_scores, nearest_distances_m
from handmim.metrics.pose import KEYS, HandMetrics, pck_auc

_PATH = Path(__file__).parent.parent / "golden" / "reference_metrics.py"
_SPEC = importlib.util.spec_from_file_location("reference_metrics", _PATH)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)


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
def test_every_figure_equals_the_independent_reference(root, noise_m):
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
    assert float(pck_auc(torch.full((4, 3), 0.0253))) == pytest.approx(48.5 / 99, abs=1e-9)
    assert float(pck_auc(torch.full((4, 3), 0.06))) == 0.0
    assert float(pck_auc(torch.zeros(4, 3))) == pytest.approx(1.0)


def test_f_score_hand_value():
    # Two of three predicted points have a neighbour within 5 mm, one of two true points has: 2
    # (2/3)(1/2) / (7/6)
    gt = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0]]])
    pred = torch.tensor([[[0.001, 0, 0], [0.002, 0, 0], [0.5, 0, 0]]])
    assert float(f_scores(pred, gt, (0.005,))) == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))


def test_distances_keep_their_digits_far_from_the_origin():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(3, 50, 3, generator=g, dtype=torch.float64) * 0.1 + 5.0
    b = a + 1e-5
    from_a, from_b = nearest_distances_m(a, b)
    torch.testing.assert_close(from_a, torch.cdist(a, b).amin(dim=2), atol=1e-8, rtol=0)
    torch.testing.assert_close(from_b, torch.cdist(a, b).amin(dim=1), atol=1e-8, rtol=0)
