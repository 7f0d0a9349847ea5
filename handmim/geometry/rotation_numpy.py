"""Rotation maps in numpy, float64, for code that starts without torch. Radians."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def rotvec_to_matrix(rotvec_rad: Array) -> Array:
    """Rotation vectors to matrices: [..., 3] -> [..., 3, 3]."""
    rotvec = np.asarray(rotvec_rad, np.float64)
    angle = np.linalg.norm(rotvec, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(rotvec / np.maximum(angle[..., 0], 1e-12), -1, 0)
    zero = np.zeros_like(x)
    skew = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * (skew @ skew)


def matrix_to_rotvec(rotmat: Array) -> Array:
    """Rotation matrices to the shortest rotation vectors, [..., 3, 3] -> [..., 3], by way of the
    quaternion's largest component: exact at 180 degrees too."""
    R = np.asarray(rotmat, np.float64)
    trace = np.trace(R, axis1=-2, axis2=-1)
    diagonal = np.diagonal(R, axis1=-2, axis2=-1)
    # 4 q q^T of q = (w, x, y, z); its column of the largest diagonal entry is q up to its length.
    outer = np.empty((*R.shape[:-2], 4, 4))
    outer[..., 0, 0] = 1 + trace
    for i in range(3):
        outer[..., i + 1, i + 1] = 1 - trace + 2 * diagonal[..., i]
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[..., 0, i + 1] = outer[..., i + 1, 0] = R[..., k, j] - R[..., j, k]
        outer[..., j + 1, k + 1] = outer[..., k + 1, j + 1] = R[..., j, k] + R[..., k, j]
    largest = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(outer, largest[..., None, None], axis=-1)[..., 0]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    q = np.where(q[..., :1] < 0, -q, q)
    sin_half = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sin_half, q[..., :1])
    return q[..., 1:] * np.where(sin_half > 1e-12, angle / np.maximum(sin_half, 1e-12), 2.0)


def random_rotation(rng: np.random.Generator) -> Array:
    """[3, 3] uniform over all rotations."""
    w, x, y, z = unit(rng.normal(size=4))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def unit(vectors: Array) -> Array:
    """Vectors of length 1 along the last axis."""
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-12)
