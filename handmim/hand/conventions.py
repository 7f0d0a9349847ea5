"""How datasets and hand layers write a hand down, and our one form of it; maps have inverses.

Ours: OpenCV camera, metres, 16 absolute rotation matrices (the first is R_cam_from_mano about the
rest wrist; a flat hand is the identity), then a translation. numpy in float64."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import matrix_to_rotvec, rotvec_to_matrix
from handmim.hand.io import HandArrays
from handmim.hand.skeleton import CANONICAL_FROM_HO3D

Array = NDArray[np.floating]

# OpenGL cameras look along -z with y up. The map is its own inverse.
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0])
MIRROR = np.diag([-1.0, 1.0, 1.0])
# The crop rule: a crop is a square centred on the box of the 21 joints in the image, its side this
# many times the box's longer side. `data.samples` cuts photos by it, `render.scene` frames renders.
CROP_SCALE = 1.45


def project_px(points_cam_m: Array, K_px: Array) -> Array:
    """Pinhole projection: [..., P, 3] OpenCV camera and [..., 3, 3] -> [..., P, 2] pixels."""
    seen = points_cam_m @ np.swapaxes(K_px, -1, -2)
    return seen[..., :2] / seen[..., 2:]


def regressed_joints(verts_m: Array, J_regressor: Array, tip_verts: Sequence[int]) -> Array:
    """The 21 joints of posed vertices by regressor and fingertip vertices, canonical, as in
    FreiHAND: [..., V, 3] -> [..., 21, 3] metres."""
    chain = J_regressor @ verts_m
    both = np.concatenate([chain, verts_m[..., list(tip_verts), :]], axis=-2)
    return both[..., list(CANONICAL_FROM_HO3D), :]


def freihand_vector(
    rotmats: Array, betas: Array, root_cam_m: Array, K_px: Array, hands_mean: Array
) -> Array:
    """A hand with regressed joint 9 (middle knuckle) at `root_cam_m` as FreiHAND's `*_mano.json`,
    [61]: global rotation, 45 axis-angle offsets from the mean pose, 10 betas, pixel u v of the
    root, pixels per metre at its depth."""
    pose = matrix_to_rotvec(rotmats)
    focal = (K_px[0, 0] + K_px[1, 1]) / 2
    scale = focal / root_cam_m[2]
    uv = scale * root_cam_m[:2] + K_px[:2, 2]
    return np.concatenate([pose[0], pose[1:].ravel() - hands_mean, betas, uv, [scale]])


def freihand_hand(vector: Array, K_px: Array, hands_mean: Array) -> tuple[Array, Array, Array]:
    """Inverse of `freihand_vector`: rotmats [16, 3, 3], betas [10], root_cam_m [3]."""
    pose = np.concatenate([vector[:3], vector[3:48] + hands_mean])
    focal = (K_px[0, 0] + K_px[1, 1]) / 2
    uv, scale = vector[58:60], vector[60]
    root = np.array([*((uv - K_px[:2, 2]) / scale), focal / scale])
    return rotvec_to_matrix(pose.reshape(16, 3)), np.asarray(vector[48:58], np.float64), root


def rest_wrist(arrays: HandArrays, betas: Array) -> Array:
    """Wrist [3] of the unposed hand of [10] betas, the centre of the global rotation, metres."""
    row = arrays.J_regressor[0]
    return row @ arrays.v_template + np.einsum("v,vck,k->c", row, arrays.shapedirs, betas)


def ho3d_pose(rotmats: Array, transl_m: Array, rest_wrist_m: Array) -> tuple[Array, Array]:
    """HO-3D's handPose [48], absolute axis-angle, and handTrans [3] in OpenGL axes. The global
    rotation is about the rest wrist J0, so that t' = F (J0 + t) - J0."""
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
    """Intrinsics of the mirrored image: u' = width - u, the first pixel's centre at 0.5."""
    mirrored = np.array(K_px, np.float64)
    mirrored[..., 0, 1] = -mirrored[..., 0, 1]
    mirrored[..., 0, 2] = width_px - mirrored[..., 0, 2]
    return mirrored
