import numpy as np
import pytest
import torch

from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.poses import PoseSampler, sample_betas

NUM = 40


@pytest.fixture(scope="session")
def posed(hand):
    """Joints and vertices of random hands, canonical order, OpenCV camera, metres."""

    def build(num, seed=0):
        rng = np.random.default_rng(seed)
        rotmats = np.tile(np.eye(3), (num, 16, 1, 1))
        rotmats[:, 1:] = PoseSampler.from_arrays(hand.arrays).sample(num, rng)
        rotmats[:, 0] = rotvec_to_matrix(rng.normal(0, 2, (num, 3)))
        betas = sample_betas(num, hand.num_betas, rng)
        place = np.stack(
            [rng.normal(-0.1, 0.1, num), rng.normal(0, 0.1, num), rng.uniform(0.45, 1.2, num)]
        )
        with torch.no_grad():
            mesh = hand(*(torch.from_numpy(a).float() for a in (rotmats, betas, place.T)))
        return mesh.joints_m.numpy(), mesh.verts_m.numpy()

    return build


@pytest.fixture(scope="module")
def hands(posed):
    return posed(NUM)
