import subprocess
import sys

import numpy as np
import pytest

from handmim.hand.poses import PoseSampler
from standin.anatomy import RING_SLOT, TIP_NEAR, TIP_SLOT
from standin.measures import FACTS, Fact, measure, overlaps, pose_verts


@pytest.fixture(scope="module")
def measured(hand_arrays):
    return measure(hand_arrays, num_poses=150)


@pytest.mark.parametrize("fact", FACTS, ids=lambda f: f.key)
def test_every_measure_is_in_its_range(measured, fact):
    assert fact.holds(measured[fact.key]), (
        f"{fact.text}: {measured[fact.key]}, required {fact.required()}"
    )


def test_a_fact_refuses_what_is_out_of_range():
    fact = Fact("x", "x", 1.0, 2.0)
    assert [fact.holds(v) for v in (0.9, 1.0, 2.0, 2.1, float("nan"))] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert fact.required() == ">= 1, <= 2"


def test_overlap_is_seen_where_fingers_are_pushed_together(hand_arrays):
    sampler = PoseSampler.from_arrays(hand_arrays)
    angles = np.zeros((2, 16, 3))
    angles[1, 1, 1], angles[1, 4, 1] = -18, 18  # index and middle across each other
    flat, crossed = sampler.rotmats(angles)
    assert not overlaps(hand_arrays, flat)
    assert overlaps(hand_arrays, crossed) or overlaps(hand_arrays, sampler.rotmats(-angles)[1])


def test_skinning_oracle_agrees_with_the_hand_model(hand_arrays, hand):
    import torch

    R = PoseSampler.from_arrays(hand_arrays).sample(4, np.random.default_rng(0))
    R = np.concatenate([np.tile(np.eye(3), (4, 1, 1, 1)), R], axis=1)
    ours = hand(torch.from_numpy(R).float(), torch.zeros(4, 10)).verts_m.numpy()
    for i in range(4):
        assert np.abs(pose_verts(hand_arrays, R[i]) - ours[i]).max() < 1e-6


def test_poses_stay_within_limits_and_depend_on_the_seed_only(hand_arrays):
    sampler = PoseSampler.from_arrays(hand_arrays)
    angles, rotmats = sampler.sample_angles(500, np.random.default_rng(0))
    low, high = sampler.limits_deg[..., 0], sampler.limits_deg[..., 1]
    assert (angles >= low - 1e-9).all()
    assert (angles <= high + 1e-9).all()
    np.testing.assert_allclose(
        rotmats @ rotmats.swapaxes(-1, -2),
        np.eye(3)[None, None].repeat(16, 1).repeat(500, 0),
        atol=1e-12,
    )
    again, _ = sampler.sample_angles(500, np.random.default_rng(0))
    assert np.array_equal(angles, again)


def test_fingers_come_parallel_as_they_close(hand_arrays):
    """Neighbouring fingers of fists spread less than those of open hands."""
    sampler = PoseSampler.from_arrays(hand_arrays)
    angles, rotmats = sampler.sample_angles(3000, np.random.default_rng(0))
    joints = hand_arrays.extras["J"]
    middle = {f: joints[j + 1] - joints[j] for f, j in zip("imrl", (2, 5, 11, 8), strict=True)}

    def spread(rows):
        tilt = []
        for a, b, ja, jb in (("i", "m", 1, 4), ("m", "r", 4, 10), ("r", "l", 10, 7)):
            u = np.einsum("nij,njk,k->ni", rotmats[rows, ja], rotmats[rows, ja + 1], middle[a])
            v = np.einsum("nij,njk,k->ni", rotmats[rows, jb], rotmats[rows, jb + 1], middle[b])
            # Across the hand only: curl differences lie along x and y.
            tilt.append(
                np.abs(u[:, 2] / np.linalg.norm(u, axis=1) - v[:, 2] / np.linalg.norm(v, axis=1))
            )
        return np.degrees(np.mean(tilt))

    curl = angles[:, [2, 5, 8, 11], 0]
    closed, opened = (curl > 75).all(axis=1), (curl < 30).all(axis=1)
    assert closed.sum() > 200
    assert opened.sum() > 200
    assert spread(closed) < spread(opened)


def test_customary_indices_hold_tips_and_the_rim(hand_arrays):
    verts = hand_arrays.v_template
    for finger, tip in TIP_SLOT.items():
        near = np.linalg.norm(verts - verts[tip], axis=1)
        assert near[list(TIP_NEAR[finger])].max() < 0.012
    assert tuple(hand_arrays.extras["wrist_ring"]) == RING_SLOT
    rim = verts[list(RING_SLOT)]
    normal = np.cross(rim - rim.mean(0), np.roll(rim, -1, 0) - rim.mean(0)).sum(0)
    assert normal[0] > 0.9 * np.linalg.norm(normal), "the cap faces the forearm (+x)"


def test_measure_tool_prints_and_fails_when_a_figure_does(tmp_path, hand_path):
    command = [sys.executable, "tools/measure_standin.py", "--poses", "3", "--markdown", "--hand"]
    good = subprocess.run([*command, str(hand_path)], capture_output=True, text=True)
    assert "| vertices | 778 | = 778 |" in good.stdout
    with np.load(hand_path) as file:
        arrays = dict(file)
    arrays["v_template"] = arrays["v_template"] * 1.3
    np.savez(tmp_path / "large.npz", **arrays)
    bad = subprocess.run([*command, str(tmp_path / "large.npz")], capture_output=True, text=True)
    assert bad.returncode == 1


@pytest.mark.slow
def test_build_gives_the_shipped_file(tmp_path, hand_path):
    pytest.importorskip("skimage")
    out = tmp_path / "built.npz"
    subprocess.run([sys.executable, "tools/build_standin.py", "--out", str(out)], check=True)
    with np.load(out) as built, np.load(hand_path) as shipped:
        assert set(built.files) == set(shipped.files)
        for key in built.files:
            if built[key].dtype.kind == "f":
                np.testing.assert_allclose(built[key], shipped[key], atol=1e-5, err_msg=key)
            else:
                assert np.array_equal(built[key], shipped[key]), key
