"""All at once against its parts: alignment by tensor operations, distances, all pairs of points."""

import numpy as np
import pytest
import torch

from benchmark.score import f_scores
from handmim.metrics.pose import mesh_errors, point_errors_m, sample_auc
from tests.geometry.plain_align import plain_align

THRESHOLDS_M = (0.015, 0.005)


def clouds(num=6, noise_m=0.006, seed=0):
    rng = np.random.default_rng(seed)
    gt = rng.normal(0, 1, (num, 90, 3)) * [0.09, 0.045, 0.02] + [0, 0, 0.6]
    shift = rng.normal(0, 0.01, (num, 1, 3))
    return 1.05 * gt + shift + rng.normal(0, noise_m, gt.shape), gt


def all_pairs(pred, gt):
    distances = np.sqrt(((pred[:, :, None] - gt[:, None]) ** 2).sum(axis=3))
    scores = np.empty((len(pred), len(THRESHOLDS_M)))
    for t, threshold in enumerate(THRESHOLDS_M):
        near = distances < threshold
        a, b = near.any(axis=2).mean(axis=1), near.any(axis=1).mean(axis=1)
        scores[:, t] = 2 * a * b / np.maximum(a + b, 1e-12)
    return scores


@pytest.mark.parametrize("noise_m", [0.0, 0.004, 0.03])
def test_every_error_and_score_is_that_of_the_parts(noise_m):
    pred, gt = clouds(noise_m=noise_m)
    ours = mesh_errors(pred, gt, THRESHOLDS_M)
    a, b = torch.from_numpy(pred), torch.from_numpy(gt)
    aligned = plain_align(a, b)
    np.testing.assert_allclose(ours.verts_m, point_errors_m(a, b), atol=1e-15)
    np.testing.assert_allclose(ours.verts_al_m, point_errors_m(aligned, b), atol=1e-12)
    np.testing.assert_allclose(ours.f, all_pairs(pred, gt), atol=1e-15)
    np.testing.assert_allclose(ours.f_al, all_pairs(aligned.numpy(), gt), atol=1e-15)
    assert (ours.f[:, 0] >= ours.f[:, 1]).all(), "thresholds keep their places"


def test_arrays_of_any_kind_and_none():
    pred, gt = clouds()
    double = mesh_errors(pred, gt, THRESHOLDS_M)
    kept, locked = pred.copy(), gt.copy()
    locked.setflags(write=False)
    for a, b in ((pred, locked), (pred[:, :, ::-1], gt[:, :, ::-1]), (np.asfortranarray(pred), gt)):
        for x, y in zip(mesh_errors(a, b, THRESHOLDS_M), double, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)
    single = mesh_errors(pred.astype(np.float32), gt.astype(np.float32), THRESHOLDS_M)
    np.testing.assert_allclose(single.verts_al_m, double.verts_al_m, atol=1e-6)
    np.testing.assert_array_equal(pred, kept)
    assert mesh_errors(pred[:0], gt[:0], THRESHOLDS_M).f.shape == (0, 2)


def test_faults_are_named():
    pred, gt = clouds()
    pred[3, 7, 1] = np.nan
    with pytest.raises(ValueError, match=r"src is not finite in samples \[3\] of 6"):
        mesh_errors(pred, gt, THRESHOLDS_M)
    with pytest.raises(ValueError, match=r"two \[B, P, 3\] with P >= 3"):
        mesh_errors(pred, gt[:, :50], THRESHOLDS_M)


def test_points_within_rounding_of_a_threshold_are_settled_in_double_precision():
    # Single precision cannot tell these from the threshold, double precision can.
    rng = np.random.default_rng(0)
    gt = np.stack(np.meshgrid(*3 * [np.arange(6) * 0.04]), axis=-1).reshape(1, -1, 3)
    direction = rng.normal(size=gt.shape)
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    step = 0.015 + rng.choice([-1e-9, 1e-9, -1e-12, 1e-12], gt.shape[:2])
    pred = gt + direction * step[..., None]
    f = f_scores(pred, gt, (0.015,)).item()
    assert f == (step < 0.015).mean()
    assert 0.3 < f < 0.7


def test_nan_and_negative_errors_in_the_area():
    errors = torch.tensor([[0.0, float("nan")], [float("inf"), 0.06], [-1.0, -1e-30]])
    assert sample_auc(errors).tolist() == [0.5, 0.0, 1.0]
