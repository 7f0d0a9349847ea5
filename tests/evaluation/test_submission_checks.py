from dataclasses import replace

import numpy as np
import pytest
import torch

from handmim.evaluation.benchmarks import FREIHAND, HO3D_V2, HO3D_V3
from handmim.evaluation.submission import KNOWN_ORDERS, check_submission
from handmim.geometry.align import similarity_align

NUM = 40  # of the `hands` fixture
BENCHMARKS = [replace(b, num_samples=NUM) for b in (FREIHAND, HO3D_V2)]
IDS = ["freihand", "ho3d"]


def names(joints, verts, benchmark):
    return [f.name for f in check_submission(joints, verts, benchmark)]


def only(joints, verts, benchmark, name):
    findings = check_submission(joints, verts, benchmark)
    assert [f.name for f in findings] == [name], findings
    return findings[0]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
@pytest.mark.parametrize("noise_m", [0.0, 0.005, 0.01])
def test_plausible_hands_give_no_findings(hands, benchmark, noise_m):
    rng = np.random.default_rng(0)
    joints, verts = (a + rng.normal(0, noise_m, a.shape) for a in hands)
    assert check_submission(*benchmark.canonical_to_benchmark(joints, verts), benchmark) == []


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_single_hands_in_any_pose_give_no_findings(posed, benchmark):
    joints, verts = benchmark.canonical_to_benchmark(*posed(150, seed=1))
    one = replace(benchmark, num_samples=1)
    for i in range(len(joints)):
        assert check_submission(joints[i : i + 1], verts[i : i + 1], one) == []


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_every_wrong_joint_order_is_named(posed, benchmark):
    joints, verts = posed(60, seed=2)
    rotated = benchmark.canonical_to_benchmark(joints, verts)[1]
    axes = [1, 1, 1] if benchmark.axes == "opencv" else [1, -1, -1]
    expected = replace(benchmark, num_samples=60)
    for name, order in KNOWN_ORDERS.items():
        theirs = (joints * axes)[:, np.argsort(order)]
        if name == benchmark.skeleton:
            assert names(theirs, rotated, expected) == []
            continue
        finding = only(theirs, rotated, expected, "joint-order")
        assert finding.level == "error"
        assert f"'{name}'" in finding.text
        # one hand is enough
        for i in range(0, 60, 7):
            one = check_submission(
                theirs[i : i + 1], rotated[i : i + 1], replace(benchmark, num_samples=1)
            )
            assert [f.name for f in one] == ["joint-order"]
            assert f"'{name}'" in one[0].text


def test_known_orders_are_permutations_and_mean_what_they_say():
    for order in KNOWN_ORDERS.values():
        assert sorted(order) == list(range(21))
    # canonical place of the index tip is 8, of the wrist 0
    places = {name: (order[0], order[8], order[4]) for name, order in KNOWN_ORDERS.items()}
    assert places == {
        "freihand": (0, 8, 4),
        "ho3d": (0, 17, 16),
        "mobrecon": (0, 16, 20),
        "ait": (0, 17, 16),
        "interhand": (20, 4, 0),
    }


def test_an_order_of_its_own_is_a_warning(hands):
    joints, verts = hands
    shuffled = joints[:, np.random.default_rng(0).permutation(21)]
    assert only(shuffled, verts, BENCHMARKS[0], "bone-lengths").level == "warning"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_the_other_benchmarks_axes_are_an_error(hands, benchmark):
    joints, verts = (a * [1, -1, -1] for a in benchmark.canonical_to_benchmark(*hands))
    finding = only(joints, verts, benchmark, "behind-camera")
    assert finding.level == "error"
    assert f"all joints in {NUM} and all vertices in {NUM} of {NUM}" in finding.text
    assert "multiply y and z by -1" in finding.text


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_one_hand_behind_the_camera(hands, benchmark):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    joints, verts = joints.copy(), verts.copy()
    joints[3] *= [1, -1, -1]
    verts[3] *= [1, -1, -1]
    finding = only(joints, verts, benchmark, "behind-camera")
    # HO-3D's own writer refuses it; to FreiHAND's evaluation it is a bad hand
    assert finding.level == ("warning" if benchmark.axes == "opencv" else "error")
    assert f"all joints in 1 and all vertices in 1 of {NUM}" in finding.text
    # hands that only reach behind the camera are let through, as the official writer does
    reaching = joints.copy()
    reaching[3] = benchmark.canonical_to_benchmark(*hands)[0][3]
    reaching[3, 7, 2] *= -1
    verts[3] = benchmark.canonical_to_benchmark(*hands)[1][3]
    assert names(reaching, verts, benchmark) == []


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
@pytest.mark.parametrize(("factor", "word"), [(1000, "millimetres"), (100, "centimetres")])
def test_units_are_told_by_the_size_of_the_hands(hands, benchmark, factor, word):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    found = check_submission(joints * factor, verts * factor, benchmark)
    assert [(f.level, f.name) for f in found] == [("error", "unit")] * 2
    assert all(f"they look like {word}, divide by {factor}" in f.text for f in found)
    assert "joints" in found[0].text
    assert "vertices" in found[1].text
    assert "joints" in only(joints * factor, verts, benchmark, "unit").text
    assert "vertices" in only(joints, verts * factor, benchmark, "unit").text


def test_normalised_hands_are_no_known_unit(hands):
    joints, verts = hands
    bone = np.linalg.norm(joints[:, 9] - joints[:, 10], axis=1)[:, None, None]
    found = check_submission(joints / bone, verts / bone, BENCHMARKS[0])
    assert [f.name for f in found] == ["unit", "unit"]
    assert "normalised" in found[0].text


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
@pytest.mark.parametrize("root", ["wrist", "middle_1"])
def test_root_relative_hands_are_a_warning(hands, benchmark, root):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    at = joints[:, [benchmark.joint_names.index(root)]]
    finding = only(joints - at, verts - at, benchmark, "root-relative")
    assert finding.level == "warning"
    # one sample with a root elsewhere, and it is not relative (but near the camera)
    moved = at.copy()
    moved[0, 0, 0] += 0.01
    assert names(joints - moved, verts - moved, benchmark) == ["depth"]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_hands_are_a_warning_although_their_aligned_error_is_zero(hands, benchmark, axis):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    middle = joints.mean(axis=1, keepdims=True)
    flip = np.where(np.arange(3) == axis, -1, 1)
    mirrored = [(points - middle) * flip + middle for points in (joints, verts)]
    aligned = similarity_align(torch.from_numpy(mirrored[0]), torch.from_numpy(joints))
    assert np.abs(aligned.numpy() - joints).max() < 1e-5
    finding = only(*mirrored, benchmark, "mirrored")
    assert finding.level == "warning"
    assert "100% of the hands bend like mirror images of right hands" in finding.text
    # too few hands to tell: one may be flat
    assert names(*(m[:5] for m in mirrored), replace(benchmark, num_samples=5)) == []


def thick(posed, least_m):
    """`NUM` hands whose joints leave their best plane by `least_m` (rms): a flat one and its mirror
    image are alike."""
    joints, verts = posed(2 * NUM)
    centred = joints - joints.mean(axis=1, keepdims=True)
    rms_m = np.linalg.svd(centred, compute_uv=False)[:, 2] / np.sqrt(joints.shape[1])
    chosen = np.flatnonzero(rms_m >= least_m)[:NUM]
    return joints[chosen], verts[chosen]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
@pytest.mark.parametrize("num", [4, 20, 32, NUM])
@pytest.mark.parametrize(("noise_m", "least_m"), [(0.005, 0.006), (0.007, 0.009)])
def test_single_mirrored_hands_are_found_where_the_ground_truth_is_known(
    posed, benchmark, num, noise_m, least_m
):
    joints, verts = benchmark.canonical_to_benchmark(*thick(posed, least_m))
    pred = joints + np.random.default_rng(0).normal(0, noise_m, joints.shape)
    verts = verts.copy()
    for points in (pred, verts):
        points[:num] *= [-1, 1, 1]
    (finding,) = check_submission(pred, verts, benchmark, joints)
    assert (finding.level, finding.name) == ("warning", "mirrored")
    assert (
        f"{num / NUM:.0%} of the {NUM} hands are mirror images of the ground truth" in finding.text
    )
    assert ("mirrored" in names(pred, verts, benchmark)) == (num > 4)  # without it, from 30 % on


@pytest.mark.parametrize("kind", ["mean hand", "other hands", "noise", "shrunk", "flat"])
def test_poor_predictions_are_no_mirror_images(posed, hands, kind):
    joints, verts = hands
    noise = np.random.default_rng(0).normal(0, 0.012, joints.shape)
    middle = joints.mean(axis=1, keepdims=True)
    pred = {
        "mean hand": np.repeat(joints[:1], NUM, axis=0),
        "other hands": posed(NUM, seed=3)[0],
        "noise": joints + noise,
        "shrunk": joints[:1] + 0.3 * (joints - joints[:1]),
        "flat": middle + (joints - middle) * [1, 1, 0.05],
    }[kind]
    found = check_submission(pred, verts, BENCHMARKS[0], joints)
    assert "mirrored" not in [f.name for f in found]


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_implausible_depth_is_a_warning(hands, factor):
    joints, verts = hands
    away = joints[:, :1] * [0, 0, factor - 1]
    assert only(joints + away, verts + away, BENCHMARKS[0], "depth").level == "warning"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_vertices_of_another_frame_order_or_hand(hands, benchmark):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    relative = verts - joints[:, :1]
    finding = only(joints, relative, benchmark, "joints-off-verts")
    assert finding.level == "error"
    assert "joints-off-verts" in names(joints, np.roll(verts, 1, axis=0), benchmark)
    flipped = names(joints, verts * [1, -1, -1], benchmark)
    assert flipped == ["behind-camera", "joints-off-verts"]
    shuffled = verts[:, np.random.default_rng(0).permutation(778)]
    assert only(joints, shuffled, benchmark, "verts-order").level == "warning"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_joints_only(hands, benchmark):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    finding = only(joints, 0 * verts, benchmark, "zero-verts")
    assert finding.level == "warning"
    assert f"{NUM} of {NUM}" in finding.text
    some = verts.copy()
    some[:3] = 0
    assert f"3 of {NUM}" in only(joints, some, benchmark, "zero-verts").text


def test_constant_and_collapsed_predictions(hands):
    joints, verts = (np.repeat(a[:1], NUM, axis=0) for a in hands)
    assert only(joints, verts, BENCHMARKS[0], "constant").level == "warning"
    assert names(0 * joints, 0 * verts, BENCHMARKS[0]) == ["collapsed", "zero-verts", "constant"]
    one = replace(FREIHAND, num_samples=1)
    assert names(joints[:1], verts[:1], one) == []


def test_count_of_the_benchmark(hands):
    finding = only(*hands, FREIHAND, "count")
    assert finding.level == "error"
    assert "40 samples, freihand has 3960" in finding.text
    assert "20137" in only(*HO3D_V3.canonical_to_benchmark(*hands), HO3D_V3, "count").text


def test_values_that_are_not_finite_are_named_and_the_rest_is_still_looked_at(hands):
    joints, verts = (a.copy() for a in hands)
    joints[4, 2, 0], verts[9, 700, 2], verts[4, 1, 1] = np.nan, np.inf, np.nan
    finding = only(joints, verts, BENCHMARKS[0], "not-finite")
    assert finding.level == "error"
    assert "2 samples hold NaN or infinity, the first [4, 9]" in finding.text
    assert names(joints * 1000, verts, BENCHMARKS[0]) == ["not-finite", "unit"]
    assert names(joints * np.nan, verts, BENCHMARKS[0]) == ["not-finite"]


def test_shapes_are_an_error_finding(hands):
    joints, verts = hands
    for pair in (
        (joints[:, :20], verts), (joints, verts[:, :777]), (joints[1:], verts),
        (joints[:0], verts[:0]), (verts, joints), (joints[0], verts[0]), (joints > 0, verts),
    ):  # fmt: skip
        assert only(*pair, BENCHMARKS[0], "shape").level == "error"


def test_tensors_are_checked_too_and_inputs_stay_as_they_are(hands):
    joints, verts = (a.copy() for a in hands)
    assert names(torch.from_numpy(joints), torch.from_numpy(verts), BENCHMARKS[0]) == []
    names(1000 * joints, verts, BENCHMARKS[1])
    np.testing.assert_array_equal(joints, hands[0])
    np.testing.assert_array_equal(verts, hands[1])
