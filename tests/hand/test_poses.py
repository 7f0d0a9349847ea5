import numpy as np

from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.poses import chain, least_gaps_m
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
