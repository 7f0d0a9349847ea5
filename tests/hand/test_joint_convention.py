import numpy as np
import pytest
import torch

from handmim.geometry.camera import project_weak
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.conventions import regressed_joints
from handmim.hand.crop_camera import CropCamera
from handmim.hand.model import JointConventions
from handmim.hand.skeleton import CONVENTION_NAMES, FINGERTIP_VERTS
from handmim.types import HandState

TIPS = [4, 8, 12, 16, 20]


@pytest.fixture
def posed(hand):
    rng = np.random.default_rng(0)
    rotmats = torch.from_numpy(rotvec_to_matrix(rng.normal(0, 0.4, (4, 16, 3)))).float()
    betas = torch.from_numpy(rng.normal(size=(4, 10))).float()
    return hand(rotmats, betas), rotmats, betas


def rules(*names: str) -> torch.Tensor:
    return torch.tensor([CONVENTION_NAMES.index(name) for name in names])


def test_every_sample_gets_the_joints_of_its_own_source(hand, posed):
    mesh = posed[0]
    given = mesh.verts_m, mesh.chain_joints_m, rules("model", "freihand", "ho3d", "manopth")
    joints = JointConventions(hand).joints(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(JointConventions(hand).joints(*given), joints)
    torch.testing.assert_close(joints[0], mesh.joints_m[0])
    verts = mesh.verts_m[1].numpy().astype(float)
    expected = regressed_joints(verts, hand.arrays.J_regressor, FINGERTIP_VERTS["freihand"])
    np.testing.assert_allclose(joints[1], expected, atol=1e-6)
    for i, name in ((2, "ho3d"), (3, "manopth")):
        tips = mesh.verts_m[i, list(FINGERTIP_VERTS[name])]
        torch.testing.assert_close(joints[i, TIPS], tips)
        others = [j for j in range(21) if j not in TIPS]
        torch.testing.assert_close(joints[i, others], mesh.joints_m[i, others])


def test_a_rule_moves_joints_and_root_but_no_vertex_in_the_picture(hand, posed):
    mesh, rotmats, betas = posed
    scale0 = 8.0
    cam = torch.tensor([[0.1, 0.02, -0.01]]).expand(4, -1)
    root = mesh.joints_m[:, 9:10]
    verts, joints = mesh.verts_m - root, mesh.joints_m - root
    state = HandState(
        rotmats, betas, cam, verts, joints,
        project_weak(verts, cam, scale0), project_weak(joints, cam, scale0),
    )  # fmt: skip
    layer, camera = JointConventions(hand), CropCamera("weak", scale0)
    same = layer.state(state, rules(*["model"] * 4), camera)
    for a, b in zip(same[:7], state[:7], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    other = layer.state(state, rules(*["freihand"] * 4), camera)
    assert other.joints_root_m[:, 9].abs().max() < 1e-7
    # the same vertices in the same place of the image, seen from the new root
    again = project_weak(other.verts_root_m, other.cam, scale0)
    torch.testing.assert_close(again, state.verts_crop_ndc, atol=1e-5, rtol=0)
    gap = (other.joints_root_m - state.joints_root_m).norm(dim=-1)
    assert 1e-4 < gap.max() < 2e-2
