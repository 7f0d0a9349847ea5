import numpy as np
import pytest

from handmim.evaluation.benchmarks import (
    FREIHAND,
    HO3D_V2,
    bootstrap_intervals,
    derived_mm,
    per_joint_mm,
)


def clouds(num):
    """Prediction and ground truth of hand-sized clouds."""
    rng = np.random.default_rng(0)
    gt = rng.normal(0, 0.04, (num, 799, 3)) + np.array([0, 0, 0.7])
    pred = gt + rng.normal(0, 0.008, gt.shape) + rng.normal(0, 0.02, (num, 1, 3))
    return pred[:, :21], pred[:, 21:], gt[:, :21], gt[:, 21:]


def test_bootstrap_covers_as_theory_says():
    # Mean of 400 draws of N(5, 2): +- 1.96 * 2 / sqrt(400) around the sample's mean.
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 400)
    values = (values - values.mean()) / values.std() * 2 + 5
    low, high = bootstrap_intervals({"a": values}, num=4000)["a"]
    assert low == pytest.approx(5 - 0.196, abs=0.01)
    assert high == pytest.approx(5 + 0.196, abs=0.01)


def test_bootstrap_intervals_hold_the_official_metrics():
    arrays = clouds(40)
    values = FREIHAND.per_sample_scores(*arrays)
    intervals = bootstrap_intervals(values, num=300)
    scores = FREIHAND.score(*arrays)
    assert list(intervals) == list(scores)
    for name, (low, high) in intervals.items():
        assert low <= scores[name] <= high, name
    assert intervals == bootstrap_intervals(values, num=300)
    assert intervals != bootstrap_intervals(values, num=300, seed=1)
    # one draw serves all metrics: a multiple of a metric has the multiple of its interval
    twice = bootstrap_intervals({"a": values["xyz_mean3d"], "b": 2 * values["xyz_mean3d"]})
    assert twice["b"] == pytest.approx([2 * x for x in twice["a"]])


def test_bootstrap_of_one_sample_or_of_equal_ones_is_a_point():
    assert bootstrap_intervals({"a": np.array([3.0])})["a"] == (3.0, 3.0)
    low, high = bootstrap_intervals({"a": np.full(7, 0.25)})["a"]
    assert (low, high) == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": np.zeros(3), "b": np.zeros(4)}, "one value per sample"),
        ({"a": np.zeros(0)}, "at least one sample"),
        ({}, "at least one sample"),
        ({"a": np.zeros((2, 3))}, "one value per sample"),
        ({"a": np.array([0, np.nan])}, r"not finite in samples \[1\]"),
    ],
)
def test_bootstrap_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(values)


@pytest.mark.parametrize("benchmark", [FREIHAND, HO3D_V2], ids=["freihand", "ho3d"])
def test_per_joint_errors_are_named_and_average_to_the_official_metrics(benchmark):
    pred_joints, pred_verts, joints, verts = clouds(4)
    place = benchmark.joint_names.index("ring_tip")
    pred_joints[:, place] += 0.5
    by_joint = per_joint_mm(pred_joints, joints, benchmark.joint_names)
    assert tuple(by_joint) == benchmark.joint_names
    assert max(by_joint, key=lambda n: by_joint[n]["abs_mm"]) == "ring_tip"
    mm = derived_mm(benchmark.score(pred_joints, pred_verts, joints, verts))
    for key, metric in (("abs_mm", "abs_mpjpe_mm"), ("pa_mm", "pa_mpjpe_mm")):
        mean = np.mean([entry[key] for entry in by_joint.values()])
        assert mean == pytest.approx(mm[metric], abs=1e-9)
