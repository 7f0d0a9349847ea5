import copy

import numpy as np
import pytest
import torch

from handmim.geometry.rotation import axis_angle_to_matrix, matrix_to_rot6d
from handmim.hand.io import load_hand_arrays
from handmim.hand.model import HandModel
from handmim.hand.skeleton import (
    BONES,
    CANONICAL_FROM_HO3D,
    CHAIN_PARENTS,
    HO3D_FROM_CANONICAL,
    JOINT_NAMES,
    ROOT_JOINT,
)


def random_pose(b: int, seed: int = 0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    pose = 0.5 * torch.randn(b, 16, 3, generator=g, dtype=dtype)
    return pose, torch.randn(b, 10, generator=g, dtype=dtype)


def test_zero_pose_is_the_template(hand):
    mesh = hand(torch.zeros(1, 48), torch.zeros(1, 10))
    template = torch.from_numpy(hand.arrays.v_template).float()
    torch.testing.assert_close(mesh.verts_m[0], template, atol=1e-7, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_equals_smplx_on_the_same_arrays(hand, hand_path, capsys):
    smplx = pytest.importorskip("smplx")
    from smplx.utils import Struct

    with np.load(hand_path) as file:
        layer = smplx.MANOLayer(
            model_path="", data_struct=Struct(**{k: file[k] for k in file.files}), is_rhand=True
        )
    pose, betas = random_pose(16)
    R = axis_angle_to_matrix(pose)
    transl = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    theirs = layer(global_orient=R[:, :1], hand_pose=R[:, 1:], betas=betas, transl=transl)
    ours = hand(R, betas, transl)
    assert (ours.verts_m - theirs.vertices).abs().max() < 1e-6
    assert (ours.chain_joints_m - theirs.joints).abs().max() < 1e-6


def test_three_forms_of_rotation_agree(hand):
    pose, betas = random_pose(4)
    R = axis_angle_to_matrix(pose)
    base = hand(pose, betas).verts_m
    for form in (pose.flatten(1), R, matrix_to_rot6d(R)):
        torch.testing.assert_close(hand(form, betas).verts_m, base, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(4, 16), (4, 45), (4, 15, 3), (16, 3), (4, 16, 9)])
def test_other_shapes_are_refused(hand, shape):
    with pytest.raises(ValueError, match=r"pose must be axis-angle"):
        hand(torch.zeros(shape), torch.zeros(4, 10))
    with pytest.raises(ValueError, match=r"betas must be \[B, 10\]"):
        hand(torch.zeros(4, 48), torch.zeros(4, 9))
    with pytest.raises(ValueError, match="got 3 poses and 4 betas"):
        hand(torch.zeros(3, 48), torch.zeros(4, 10))
    with pytest.raises(ValueError, match=r"transl_m must be \[4, 3\], got \(3,\)"):
        hand(torch.zeros(4, 48), torch.zeros(4, 10), torch.zeros(3))


def test_samples_do_not_see_each_other(hand):
    pose, betas = random_pose(5)
    whole = hand(pose, betas).verts_m
    torch.testing.assert_close(whole[3:4], hand(pose[3:4], betas[3:4]).verts_m, atol=1e-6, rtol=0)


def test_wrist_turns_in_place_and_translation_adds(hand):
    pose, betas = random_pose(3)
    rest = hand(torch.zeros(3, 16, 3), betas).joints_m[:, 0]
    transl = torch.tensor([[0.1, -0.2, 0.5]]).expand(3, 3)
    torch.testing.assert_close(
        hand(pose, betas, transl).joints_m[:, 0], rest + transl, atol=1e-6, rtol=0
    )


def test_global_rotation_turns_everything_rigidly_about_the_wrist(hand):
    pose, betas = random_pose(2)
    still = pose.clone()
    still[:, 0] = 0
    R = axis_angle_to_matrix(pose[:, 0])
    a, b = hand(still, betas), hand(pose, betas)
    root = a.joints_m[:, :1]
    expected = (a.verts_m - root) @ R.transpose(1, 2) + root
    torch.testing.assert_close(b.verts_m, expected, atol=1e-6, rtol=0)


def test_curl_is_positive_z_and_goes_to_the_palm(hand):
    pose = torch.zeros(1, 16, 3)
    pose[0, 1:13, 2] = 0.6  # index, middle, little, ring
    flat, curled = hand(torch.zeros(1, 48), torch.zeros(1, 10)), hand(pose, torch.zeros(1, 10))
    tips = [8, 12, 16, 20]
    assert (curled.joints_m[0, tips, 1] < flat.joints_m[0, tips, 1] - 0.02).all()  # palm is -y


def test_gradients_are_exact(hand_arrays):
    model = HandModel(hand_arrays).double()
    pose, betas = random_pose(1, dtype=torch.float64)
    pose.requires_grad_(True)
    betas.requires_grad_(True)
    weights = torch.randn(778, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def total(p, b):
        mesh = model(p, b)
        return (mesh.verts_m * weights).sum() + mesh.joints_m.square().sum()

    assert torch.autograd.gradcheck(total, (pose, betas), atol=1e-5)


def test_regressed_joints_equal_the_chain_at_rest_and_differ_when_bent(hand):
    rest = hand(torch.zeros(1, 48), torch.zeros(1, 10))
    chain = hand.joint_regressor @ rest.verts_m
    torch.testing.assert_close(chain, rest.chain_joints_m, atol=5e-5, rtol=0)
    bent = hand(*random_pose(1))
    gap = (hand.joint_regressor @ bent.verts_m - bent.chain_joints_m).norm(dim=-1)
    assert gap.shape == (1, 16)
    assert 1e-4 < gap.max() < 1e-2


def test_state_dict_is_empty_and_copies_work(hand):
    assert hand.state_dict() == {}
    pose, betas = random_pose(2)
    twin = copy.deepcopy(hand).double()
    assert twin(pose.double(), betas.double()).verts_m.dtype == torch.float64
    torch.testing.assert_close(
        twin(pose, betas).verts_m.float(), hand(pose, betas).verts_m, atol=1e-6, rtol=0
    )
    assert twin.sha256 == hand.sha256


def test_autocast_does_not_reach_the_hand(hand):
    pose, betas = random_pose(2)
    transl = torch.ones(2, 3)
    plain = hand(pose, betas, transl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = hand(pose, betas, transl)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_the_stand_in_is_a_right_hand_without_repairs(hand):
    assert (hand.side, hand.arrays.repairs, hand.num_betas) == ("right", (), 10)
    assert hand.name == "standin_right"
    assert len({hand.sha256, hand.arrays.file_sha256}) == 2


def test_skeleton_tables_agree():
    assert JOINT_NAMES[ROOT_JOINT] == "middle_1"
    assert JOINT_NAMES[4] == "thumb_tip"
    assert [CANONICAL_FROM_HO3D[i] for i in HO3D_FROM_CANONICAL] == list(range(21))
    assert len(BONES) == 20
    assert {child for _, child in BONES} == set(range(1, 21))
    # bones of the canonical order follow the chain's parents
    for parent, child in BONES:
        a, b = CANONICAL_FROM_HO3D[parent], CANONICAL_FROM_HO3D[child]
        if b < 16:
            assert CHAIN_PARENTS[b] == a


def test_damaged_files_are_refused_by_name(tmp_path, hand_path):
    with np.load(hand_path) as file:
        good = {k: file[k] for k in file.files}

    def load(**changes):
        arrays = {k: v for k, v in (good | changes).items() if v is not None}
        np.savez(tmp_path / "x.npz", **arrays)
        return load_hand_arrays(tmp_path / "x.npz")

    assert load().v_template.shape == (778, 3)
    with pytest.raises(ValueError, match=r"lacks \['weights'\]"):
        load(weights=None)
    with pytest.raises(ValueError, match=r"must be numbers \(778, 3\), got float32 \(777, 3\)"):
        load(v_template=good["v_template"][:777])
    with pytest.raises(ValueError, match="not finite"):
        load(hands_mean=good["hands_mean"] * np.nan)
    with pytest.raises(ValueError, match="sum to 1"):
        load(weights=good["weights"] * 0.9)
    weights = good["weights"].astype(np.float64).copy()
    weights[5, :2] += [-2.5, 2.5]
    with pytest.raises(ValueError, match=r"skinning weights must be >= 0, got -[12]\.\d+"):
        load(weights=weights)
    with pytest.raises(ValueError, match="J_regressor must sum to 1"):
        load(J_regressor=good["J_regressor"] * 0.95)
    for index in (778, -1):
        faces = good["f"].copy()
        faces[3, 1] = index
        with pytest.raises(ValueError, match=rf"f must hold indices 0 to 777, got .*{index}"):
            load(f=faces)
    kintree = good["kintree_table"].copy()
    kintree[0, 5] = 0
    with pytest.raises(ValueError, match=r"parents must be .*, got \(-1, 0, 1, 2, 0, 0, 5"):
        load(kintree_table=kintree)
    kintree = good["kintree_table"].astype(np.int64)
    kintree[0, 0] = -1
    assert load(kintree_table=kintree).parents == CHAIN_PARENTS
    with pytest.raises(
        ValueError, match=r"tip_ids must be five vertices, got \[744, 320, 443, 554, 778\]"
    ):
        load(tip_ids=np.array([744, 320, 443, 554, 778]))
    with pytest.raises(ValueError, match=r"hands_mean must be numbers .*, got <U5"):
        load(hands_mean=np.array(["hello"] * 45))
    assert load(tip_ids=None).tip_ids == (744, 320, 443, 554, 671)
    assert load(shapedirs=np.tile(good["shapedirs"], 2)).shapedirs.shape == (778, 3, 10)
    with pytest.raises(ValueError, match=r"MANO's axes are required"):
        load(v_template=good["v_template"][:, [1, 0, 2]])  # fingers along y
    with pytest.raises(ValueError, match=r"MANO's axes are required"):
        load(v_template=good["v_template"] * [-1, 1, -1])  # half a rotation: not a left hand
    message = r"hand=standin is data/standin_right\.npz; .*hand=mano hand\.path=FILE"
    with pytest.raises(FileNotFoundError, match=message):
        load_hand_arrays(tmp_path / "none.npz")
