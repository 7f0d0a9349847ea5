import numpy as np

from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.io import load_hand_arrays
from handmim.hand.poses import PoseSampler, chain, least_gaps_m
from handmim.hand.skeleton import CHAIN_PARENTS


def test_digits_move_together_as_joint_by_joint():
    rng = np.random.default_rng(1)
    for num in (1, 5):
        rotmats = rotvec_to_matrix(rng.normal(0, 1, (num, 16, 3)))
        joints = rng.normal(0, 0.1, (num, 16, 3))
        for rest in (joints, joints[0]):
            world, posed = chain(rotmats, rest)
            rest = np.broadcast_to(rest, (num, 16, 3))
            for n in range(num):
                rotation, position = [rotmats[n, 0]], [rest[n, 0]]
                for j in range(1, 16):
                    p = CHAIN_PARENTS[j]
                    rotation.append(rotation[p] @ rotmats[n, j])
                    position.append(position[p] + rotation[p] @ (rest[n, j] - rest[n, p]))
                np.testing.assert_allclose(world[n], rotation, atol=1e-14)
                np.testing.assert_allclose(posed[n], position, atol=1e-14)


def test_least_gaps_are_those_of_all_pairs():
    rng = np.random.default_rng(2)
    beads, heel = rng.normal(0, 1, (6, 3, 4, 3)), rng.normal(0, 1, (6, 5, 3))
    radii = rng.uniform(0.05, 0.2, (3, 4))
    for n, got in enumerate(least_gaps_m(beads, radii, heel, 0.1, tips=2)):
        gaps = []
        for a in range(3):
            for b in range(a):
                d = np.linalg.norm(beads[n, a][:, None] - beads[n, b], axis=2)
                gaps.append((d - radii[a][:, None] - radii[b]).min())
            d = np.linalg.norm(beads[n, a, 2:, None] - heel[n], axis=2)
            gaps.append((d - radii[a, 2:, None] - 0.1).min())
        assert abs(got - min(gaps)) < 1e-12


def test_a_thumb_is_open_or_across_the_palm_whatever_the_fingers_do():
    sampler = PoseSampler.from_arrays(load_hand_arrays("standin"))
    angles, rotmats = sampler.sample_angles(1500, np.random.default_rng(3))
    world, posed = chain(rotmats, sampler.joints_m)
    end = sampler.tips_m[4] - sampler.joints_m[15]
    tip_mm = 1000 * (posed[:, 15] + (world[:, 15] @ end[:, None])[..., 0])
    sideways = tip_mm[:, 2]  # +z towards the thumb; the index knuckle lies at 29 mm
    assert np.mean(sideways < 10) > 0.25
    assert np.mean(sideways > 70) > 0.3
    index_curl = angles[:, 1, 0] + angles[:, 2, 0]
    thumb_flexion = angles[:, 13, 0] + angles[:, 14, 0]
    assert abs(np.corrcoef(index_curl, thumb_flexion)[0, 1]) < 0.35
