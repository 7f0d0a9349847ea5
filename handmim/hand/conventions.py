"""How datasets and hand layers write a hand down, and our one form of it; every map has an inverse.

Ours: OpenCV camera (x right, y down, z forward), metres, 16 absolute rotation matrices (the first
is R_cam_from_mano and rotates the hand about its rest wrist; a flat hand is the identity), a
translation added to everything. numpy, float64 inside, no torch: rendering processes use it too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import matrix_to_rotvec, rotvec_to_matrix
from handmim.hand.arrays import HandArrays
from handmim.hand.skeleton import CANONICAL_FROM_CHAIN_AND_TIPS

Array = NDArray[np.floating]

# OpenGL cameras look along -z with y up. The map is its own inverse.
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0])
MIRROR = np.diag([-1.0, 1.0, 1.0])


def absolute_pose(
    hand_pose: Array,
    arrays: HandArrays,
    *,
    num_pca_comps: int | None = None,
    flat_hand_mean: bool = True,
) -> Array:
    """Finger pose of any MANO convention as absolute axis-angle (zero = flat hand).

    Args:
        hand_pose: [B, num_pca_comps] PCA coefficients, or [B, 45] axis-angle when that is None.
        arrays: hand model whose components and mean pose are meant.
        num_pca_comps: how many of its components the coefficients go with.
        flat_hand_mean: False when the pose is an offset from the model's mean pose, as smplx's
            `flat_hand_mean=False` and FreiHAND's annotations are.
    Returns: [B, 45] radians.
    Raises: ValueError for another width.
    """
    width = 45 if num_pca_comps is None else num_pca_comps
    if hand_pose.ndim != 2 or hand_pose.shape[1] != width:
        raise ValueError(f"hand_pose must be [B, {width}], got {hand_pose.shape}")
    pose = np.asarray(hand_pose, np.float64)
    if num_pca_comps is not None:
        pose = pose @ arrays.hands_components[:num_pca_comps]
    return pose if flat_hand_mean else pose + arrays.hands_mean


def pose_coefficients(
    pose_absolute: Array,
    arrays: HandArrays,
    *,
    num_pca_comps: int | None = None,
    flat_hand_mean: bool = True,
) -> Array:
    """Inverse of `absolute_pose`; with fewer than 45 components the nearest pose they reach.

    [B, 45] radians -> [B, 45] or [B, num_pca_comps].
    """
    pose = np.asarray(pose_absolute, np.float64)
    pose = pose if flat_hand_mean else pose - arrays.hands_mean
    if num_pca_comps is None:
        return pose
    return np.linalg.lstsq(arrays.hands_components[:num_pca_comps].T, pose.T, rcond=None)[0].T


def project_px(points_cam_m: Array, K_px: Array) -> Array:
    """Pinhole projection: [..., P, 3] OpenCV camera and [..., 3, 3] -> [..., P, 2] pixels."""
    seen = points_cam_m @ np.swapaxes(K_px, -1, -2)
    return seen[..., :2] / seen[..., 2:]


def regressed_joints(verts_m: Array, J_regressor: Array, tip_verts: Sequence[int]) -> Array:
    """The 21 joints of posed vertices by regressor and fingertip vertices, in canonical order.

    FreiHAND's annotations are made this way. [..., V, 3] -> [..., 21, 3] metres.
    """
    chain = J_regressor @ verts_m
    both = np.concatenate([chain, verts_m[..., list(tip_verts), :]], axis=-2)
    return both[..., list(CANONICAL_FROM_CHAIN_AND_TIPS), :]


def freihand_vector(
    rotmats: Array, betas: Array, root_cam_m: Array, K_px: Array, hands_mean: Array
) -> Array:
    """A hand as FreiHAND's `*_mano.json` has it.

    Args:
        rotmats: [16, 3, 3].
        betas: [10].
        root_cam_m: [3] regressed joint 9 (middle knuckle).
        K_px: [3, 3].
        hands_mean: [45] of the hand model.
    Returns: [61]: global rotation, 45 axis-angle offsets from the mean pose, 10 betas, pixel u v of
        the root, pixels per metre at its depth.
    """
    pose = matrix_to_rotvec(rotmats)
    focal = (K_px[0, 0] + K_px[1, 1]) / 2
    scale = focal / root_cam_m[2]
    uv = scale * root_cam_m[:2] + K_px[:2, 2]
    return np.concatenate([pose[0], pose[1:].ravel() - hands_mean, betas, uv, [scale]])


def freihand_hand(vector: Array, K_px: Array, hands_mean: Array) -> tuple[Array, Array, Array]:
    """Inverse of `freihand_vector`: rotmats [16, 3, 3], betas [10], root_cam_m [3].

    The mesh is posed without translation and then moved so that its regressed joint 9 lies on the
    root.
    """
    pose = np.concatenate([vector[:3], vector[3:48] + hands_mean])
    focal = (K_px[0, 0] + K_px[1, 1]) / 2
    uv, scale = vector[58:60], vector[60]
    root = np.array([*((uv - K_px[:2, 2]) / scale), focal / scale])
    return rotvec_to_matrix(pose.reshape(16, 3)), np.asarray(vector[48:58], np.float64), root


def rest_wrist(arrays: HandArrays, betas: Array) -> Array:
    """Wrist of the unposed hand, the centre of the global rotation: [3] metres.

    Args:
        arrays: hand model.
        betas: [10].
    """
    row = arrays.J_regressor[0]
    return row @ arrays.v_template + np.einsum("v,vck,k->c", row, arrays.shapedirs, betas)


def ho3d_pose(rotmats: Array, transl_m: Array, rest_wrist_m: Array) -> tuple[Array, Array]:
    """A hand as HO-3D's metas have it: OpenGL axes.

    The global rotation is about the rest wrist J0, so the translation changes with the axes: t'
    = F (J0 + t) - J0.

    Args:
        rotmats: [16, 3, 3] OpenCV camera.
        transl_m: [3] OpenCV camera.
        rest_wrist_m: [3] wrist of the unposed hand of these betas.
    Returns: handPose [48] absolute axis-angle, handTrans [3].
    """
    F = OPENCV_FROM_OPENGL
    rotated = np.concatenate([(F @ rotmats[0])[None], rotmats[1:]])
    return matrix_to_rotvec(rotated).ravel(), F @ (rest_wrist_m + transl_m) - rest_wrist_m


def ho3d_hand(hand_pose: Array, hand_trans_m: Array, rest_wrist_m: Array) -> tuple[Array, Array]:
    """Inverse of `ho3d_pose`: rotmats [16, 3, 3] and transl_m [3] in the OpenCV camera."""
    F = OPENCV_FROM_OPENGL
    rotmats = rotvec_to_matrix(np.asarray(hand_pose, np.float64).reshape(16, 3))
    rotmats[0] = F @ rotmats[0]
    return rotmats, F @ (rest_wrist_m + hand_trans_m) - rest_wrist_m


def mirror_points(points: Array) -> Array:
    """Points or translations of the other hand: x negated. [..., 3] -> [..., 3]."""
    return points * np.diag(MIRROR)


def mirror_rotmats(rotmats: Array) -> Array:
    """Rotations of the other hand, M R M: axis-angle (a, b, c) becomes (a, -b, -c)."""
    return MIRROR @ rotmats @ MIRROR


def mirror_intrinsics(K_px: Array, width_px: float) -> Array:
    """Intrinsics of the mirrored image: u' = width - u with the first pixel's centre at 0.5.

    Holds for mirrored points: focal lengths stay, the principal point moves to width - cx.
    [..., 3, 3] -> [..., 3, 3].
    """
    mirrored = np.array(K_px, np.float64)
    mirrored[..., 0, 1] = -mirrored[..., 0, 1]
    mirrored[..., 0, 2] = width_px - mirrored[..., 0, 2]
    return mirrored
