import numpy as np
import pytest
import torch

from handmim.geometry.rotation import axis_angle_to_matrix
from handmim.geometry.rotation_numpy import matrix_to_rotvec, rotvec_to_matrix
from handmim.hand.conventions import (
    OPENCV_FROM_OPENGL,
    freihand_hand,
    freihand_vector,
    ho3d_hand,
    ho3d_pose,
    mirror_intrinsics,
    mirror_points,
    mirror_rotmats,
    regressed_joints,
    rest_wrist,
)
from handmim.hand.skeleton import (
    CANONICAL_FROM_HO3D,
    CHAIN_FROM_CANONICAL,
    JOINT_NAMES,
    SKELETONS,
    joint_order,
)


def random_rotvecs(num: int, seed: int = 0, length: float = 2.0) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=(num, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True) * length


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, np.pi - 1e-7, np.pi])
def test_rotation_vectors_survive_the_round_trip_at_any_angle(angle):
    v = random_rotvecs(50, length=angle)
    R = rotvec_to_matrix(v)
    np.testing.assert_allclose(rotvec_to_matrix(matrix_to_rotvec(R)), R, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(matrix_to_rotvec(R), axis=1), angle, atol=1e-7)


def test_rotation_maps_agree_with_the_tensor_ones():
    v = np.random.default_rng(1).normal(0, 1, (4, 16, 3))
    ours, theirs = rotvec_to_matrix(v), axis_angle_to_matrix(torch.from_numpy(v)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("source", sorted(SKELETONS))
@pytest.mark.parametrize("target", sorted(SKELETONS))
def test_joint_orders_survive_the_round_trip(source, target):
    there, back = joint_order(source, target), joint_order(target, source)
    assert [there[i] for i in back] == list(range(21))


def test_joint_orders_follow_the_names():
    ho3d = [JOINT_NAMES[i] for i in joint_order("canonical", "ho3d")]
    assert ho3d[:4] == ["wrist", "index_1", "index_2", "index_3"]
    assert ho3d[7:10] == ["little_1", "little_2", "little_3"]
    assert ho3d[13:] == ["thumb_1", "thumb_2", "thumb_3", *(
        f"{f}_tip" for f in ("thumb", "index", "middle", "ring", "little")
    )]  # fmt: skip
    assert joint_order("ho3d", "canonical") == CANONICAL_FROM_HO3D
    assert [JOINT_NAMES[i] for i in CHAIN_FROM_CANONICAL] == ho3d[:16]
    with pytest.raises(ValueError, match=r"no joint order 'smpl'; there are .*'ho3d'"):
        joint_order("smpl", "ho3d")


def test_a_freihand_vector_survives_the_round_trip(hand_arrays):
    rng = np.random.default_rng(0)
    R = rotvec_to_matrix(rng.normal(0, 0.8, (16, 3)))
    betas, root = rng.normal(size=10), np.array([0.03, -0.02, 0.7])
    K = np.array([[480.0, 0, 112], [0, 470.0, 110], [0, 0, 1]])
    vector = freihand_vector(R, betas, root, K, hand_arrays.hands_mean)
    assert vector.shape == (61,)
    # DATA.md (a): root = ((u - px) / s, (v - py) / s, f / s) with f the mean focal length
    assert vector[60] == pytest.approx(475 / 0.7)
    assert vector[58] == pytest.approx(112 + 475 / 0.7 * 0.03)
    back = freihand_hand(vector, K, hand_arrays.hands_mean)
    for ours, theirs in zip((R, betas, root), back, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-12)
    flat = freihand_hand(np.zeros(61) + np.r_[np.zeros(60), 600], K, hand_arrays.hands_mean)
    mean = rotvec_to_matrix(hand_arrays.hands_mean.reshape(15, 3))
    np.testing.assert_allclose(flat[0][1:], mean, atol=1e-12)


def test_an_ho3d_pose_survives_the_round_trip_and_puts_vertices_where_they_were(hand, hand_arrays):
    rng = np.random.default_rng(1)
    R, betas = rotvec_to_matrix(rng.normal(0, 0.8, (16, 3))), rng.normal(size=10)
    transl = np.array([0.02, 0.05, 0.6])
    rest = rest_wrist(hand_arrays, betas)
    pose, trans = ho3d_pose(R, transl, rest)
    back_R, back_t = ho3d_hand(pose, trans, rest)
    np.testing.assert_allclose(back_R, R, atol=1e-12)
    np.testing.assert_allclose(back_t, transl, atol=1e-12)

    def verts(rotmats, t):
        mesh = hand(*(torch.from_numpy(x)[None].float() for x in (rotmats, betas, t)))
        return mesh.verts_m[0].numpy()

    theirs = verts(rotvec_to_matrix(pose.reshape(16, 3)), trans)  # posed in OpenGL axes
    np.testing.assert_allclose(theirs @ OPENCV_FROM_OPENGL, verts(R, transl), atol=1e-6)
    assert (theirs[:, 2] < 0).all()


def test_mirroring_twice_is_nothing_and_poses_the_mirrored_mesh(hand):
    rng = np.random.default_rng(2)
    R = rotvec_to_matrix(rng.normal(0, 0.8, (16, 3)))
    np.testing.assert_allclose(mirror_rotmats(mirror_rotmats(R)), R, atol=1e-15)
    a, b, c = matrix_to_rotvec(R).T
    np.testing.assert_allclose(
        matrix_to_rotvec(mirror_rotmats(R)), np.stack([a, -b, -c], 1), atol=1e-9
    )
    K = np.array([[480.0, 0, 100], [0, 470.0, 110], [0, 0, 1]])
    np.testing.assert_allclose(mirror_intrinsics(mirror_intrinsics(K, 224), 224), K)
    points = rng.normal(0, 0.05, (7, 3)) + np.array([0, 0, 0.6])
    u = (points @ K.T)[:, 0] / points[:, 2]
    mirrored = mirror_points(points) @ mirror_intrinsics(K, 224).T
    np.testing.assert_allclose(mirrored[:, 0] / mirrored[:, 2], 224 - u, atol=1e-9)


def test_regressed_joints_are_regressor_times_vertices(hand, hand_arrays):
    R = torch.from_numpy(rotvec_to_matrix(np.random.default_rng(3).normal(0, 0.4, (16, 3))))
    mesh = hand(R[None].float(), torch.zeros(1, 10))
    verts = mesh.verts_m[0].numpy().astype(np.float64)
    joints = regressed_joints(verts, hand_arrays.J_regressor, (744, 320, 443, 555, 672))
    np.testing.assert_array_equal(joints[[4, 8, 12, 16, 20]], verts[[744, 320, 443, 555, 672]])
    np.testing.assert_allclose(joints[9], hand_arrays.J_regressor[4] @ verts)
    gap = np.linalg.norm(joints - mesh.joints_m[0].numpy(), axis=1)
    assert gap.max() < 0.01
