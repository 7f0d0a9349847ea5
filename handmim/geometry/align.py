"""Similarity Procrustes alignment of point sets, compiled on the CPU."""

import math

import numpy as np
import torch
from torch import Tensor

from handmim.utils.kernels import njit

compiled = njit(cache=True, nogil=True)
SWEEPS = 30  # of Jacobi rotations; far more than any matrix takes
# Singular values below this share of the largest are rounding: their directions mean nothing.
TINY = 1e-14


def similarity_align(src: Tensor, dst: Tensor, allow_reflection: bool = True) -> Tensor:
    """Move `src` onto `dst` by the best scale, rotation and translation, as the FreiHAND and HO-3D
    evaluators do: two [B, P, 3] in any units, P >= 3 -> [B, P, 3] in the unit of `dst`.

    Centred sets are divided by their Frobenius norm + 1e-8. The evaluators allow reflections; False
    restricts to rotations (Umeyama 1991). float64 inside, on the CPU, without gradients.
    Raises: ValueError for other shapes, or values that are not finite.
    """
    if src.shape != dst.shape or src.ndim != 3 or src.shape[-1] != 3 or src.shape[1] < 3:
        shapes = f"{tuple(src.shape)} and {tuple(dst.shape)}"
        raise ValueError(f"src and dst must be [B, P, 3] with P >= 3, got {shapes}")
    a, b = (t.detach().to("cpu", torch.float64).contiguous().numpy() for t in (src, dst))
    aligned, norms = np.empty_like(a), np.empty((2, len(a)))
    align_samples(a, b, allow_reflection, aligned, norms)
    check_norms(torch.from_numpy(norms))
    return torch.from_numpy(aligned).to(src)


def check_norms(norms: Tensor) -> None:
    """Raises: ValueError naming the samples whose norms [2, B], centred, are not finite."""
    for name, norm in zip(("src", "dst"), norms, strict=True):
        bad = (~norm.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"{name} is not finite in samples {bad[:5]} of {len(norm)}")


@compiled
def _cross(a, b, out):
    out[0] = a[1] * b[2] - a[2] * b[1]
    out[1] = a[2] * b[0] - a[0] * b[2]
    out[2] = a[0] * b[1] - a[1] * b[0]


@compiled
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled
def _rotate(m, p, q, c, s):
    for i in range(3):
        a, b = m[p, i], m[q, i]
        m[p, i], m[q, i] = c * a - s * b, s * a + c * b


@compiled
def _divide(a, by):
    a[0], a[1], a[2] = a[0] / by, a[1] / by, a[2] / by


@compiled
def _complete(m):
    x, y, z = abs(m[0, 0]), abs(m[0, 1]), abs(m[0, 2])
    m[1, 0] = 1.0 if x <= y and x <= z else 0.0
    m[1, 1] = 1.0 if y < x and y <= z else 0.0
    m[1, 2] = 1.0 if z < x and z < y else 0.0
    _cross(m[0], m[1], m[2])
    _divide(m[2], math.sqrt(_dot(m[2], m[2])))
    _cross(m[2], m[0], m[1])


@compiled
def svd3(m, u, s, v):
    """Singular values s [3] out, largest first, of m [3, 3], small ones as exact as large ones: m
    is the sum over k of s[k] times the outer product of u[k] and v[k], [3, 3] out. Where s[k]
    vanishes, u and v are completed so that the sum of the outer products is a rotation. Jacobi
    rotations."""
    for k in range(3):
        for i in range(3):
            u[k, i], v[k, i] = m[i, k], 1.0 if i == k else 0.0
    for _ in range(SWEEPS):
        is_done = True
        for p, q in ((0, 1), (0, 2), (1, 2)):
            pp, qq, pq = _dot(u[p], u[p]), _dot(u[q], u[q]), _dot(u[p], u[q])
            if abs(pq) > 1e-16 * math.sqrt(pp) * math.sqrt(qq):
                is_done = False
                zeta = (qq - pp) / (2 * pq)
                t = math.copysign(1.0, zeta) / (abs(zeta) + math.sqrt(1 + zeta * zeta))
                c = 1 / math.sqrt(1 + t * t)
                _rotate(u, p, q, c, c * t)
                _rotate(v, p, q, c, c * t)
        if is_done:
            break
    for k in range(3):
        s[k] = math.sqrt(_dot(u[k], u[k]))
    for p, q in ((0, 1), (1, 2), (0, 1)):
        if s[q] > s[p]:
            s[p], s[q] = s[q], s[p]
            _rotate(u, p, q, 0.0, 1.0)  # swaps them, one with its sign flipped
            _rotate(v, p, q, 0.0, 1.0)
    rank = 0
    while rank < 3 and s[rank] > TINY * s[0]:
        _divide(u[rank], s[rank])
        rank += 1
    if rank == 0:
        u[:] = v
    if rank == 1:
        _complete(u)
        _complete(v)
    if rank == 2:
        _cross(u[0], u[1], u[2])
        _cross(v[0], v[1], v[2])


@compiled
def _moments(src, dst, means, cov):
    """Norms of the centred points; out, both means, and the products of the centred points, dst's
    coordinates down and src's across."""
    num = src.shape[0]
    a0 = a1 = a2 = b0 = b1 = b2 = 0.0
    for i in range(num):
        a0, a1, a2 = a0 + src[i, 0], a1 + src[i, 1], a2 + src[i, 2]
        b0, b1, b2 = b0 + dst[i, 0], b1 + dst[i, 1], b2 + dst[i, 2]
    a0, a1, a2, b0, b1, b2 = a0 / num, a1 / num, a2 / num, b0 / num, b1 / num, b2 / num
    means[0, 0], means[0, 1], means[0, 2] = a0, a1, a2
    means[1, 0], means[1, 1], means[1, 2] = b0, b1, b2
    aa = bb = m00 = m01 = m02 = m10 = m11 = m12 = m20 = m21 = m22 = 0.0
    for i in range(num):
        x, y, z = src[i, 0] - a0, src[i, 1] - a1, src[i, 2] - a2
        u, v, w = dst[i, 0] - b0, dst[i, 1] - b1, dst[i, 2] - b2
        aa += x * x + y * y + z * z
        bb += u * u + v * v + w * w
        m00, m01, m02 = m00 + u * x, m01 + u * y, m02 + u * z
        m10, m11, m12 = m10 + v * x, m11 + v * y, m12 + v * z
        m20, m21, m22 = m20 + w * x, m21 + w * y, m22 + w * z
    cov[0, 0], cov[0, 1], cov[0, 2] = m00, m01, m02
    cov[1, 0], cov[1, 1], cov[1, 2] = m10, m11, m12
    cov[2, 0], cov[2, 1], cov[2, 2] = m20, m21, m22
    return math.sqrt(aa), math.sqrt(bb)


@compiled
def align_sample(src, dst, allow_reflection, out, room):
    """`similarity_align` of one sample in float64, [P, 3] to `out`; `room` [5, 3, 3] is written
    over. Returns the norms of the centred sets; where one is not finite, `out` means nothing."""
    means, s, rotation, cov, u, v = room[0], room[0, 2], room[1], room[2], room[3], room[4]
    norm_a, norm_b = _moments(src, dst, means, cov)
    if not (math.isfinite(norm_a) and math.isfinite(norm_b)):
        return norm_a, norm_b
    unit_a, unit_b = norm_a + 1e-8, norm_b + 1e-8
    for i in range(3):
        _divide(cov[i], unit_a)
        _divide(cov[i], unit_b)
    svd3(cov, u, s, v)
    if not allow_reflection:
        _cross(u[0], u[1], rotation[0])
        _cross(v[0], v[1], rotation[1])
        if _dot(rotation[0], u[2]) * _dot(rotation[1], v[2]) < 0:
            _divide(u[2], -1.0)
            s[2] = -s[2]
    scale = (s[0] + s[1] + s[2]) * unit_b / unit_a
    for i in range(3):
        for j in range(3):
            rotation[i, j] = scale * (u[0, i] * v[0, j] + u[1, i] * v[1, j] + u[2, i] * v[2, j])
    a0, a1, a2 = means[0, 0], means[0, 1], means[0, 2]
    b0, b1, b2 = means[1, 0], means[1, 1], means[1, 2]
    t00, t01, t02 = rotation[0, 0], rotation[0, 1], rotation[0, 2]
    t10, t11, t12 = rotation[1, 0], rotation[1, 1], rotation[1, 2]
    t20, t21, t22 = rotation[2, 0], rotation[2, 1], rotation[2, 2]
    for i in range(src.shape[0]):
        x, y, z = src[i, 0] - a0, src[i, 1] - a1, src[i, 2] - a2
        out[i, 0] = b0 + (t00 * x + t01 * y + t02 * z)
        out[i, 1] = b1 + (t10 * x + t11 * y + t12 * z)
        out[i, 2] = b2 + (t20 * x + t21 * y + t22 * z)
    return norm_a, norm_b


@compiled
def align_samples(src, dst, allow_reflection, out, norms):
    """`align_sample` of [B, P, 3] float64; its norms go to [2, B]."""
    room = np.empty((5, 3, 3))
    for b in range(len(src)):
        norms[0, b], norms[1, b] = align_sample(src[b], dst[b], allow_reflection, out[b], room)
