"""The compiled alignment against tensor operations and numpy's decomposition."""

import numpy as np
import pytest
import torch

from handmim.geometry.align import similarity_align, svd3
from tests.geometry.plain_align import plain_align


def hands(num=12, points=60, seed=0):
    rng = np.random.default_rng(seed)
    gt = rng.normal(0, 1, (num, points, 3)) * [0.09, 0.045, 0.02]
    rotation = np.linalg.qr(rng.normal(size=(num, 3, 3)))[0]
    gt = gt @ rotation + rng.normal(0, 0.1, (num, 1, 3)) + [0, 0, 0.7]
    return 1.07 * gt + rng.normal(0, 0.007, gt.shape), gt


SPOILT = {
    "as it is": lambda a, b: (a, b),
    "the same": lambda a, b: (b, b),
    "mirrored": lambda a, b: (a * [-1, 1, 1], b),
    "mirrored exactly": lambda a, b: (b * [1, 1, -1], b),
    "three points": lambda a, b: (a[:, :3], b[:, :3]),
    "a point": lambda a, b: (0 * a, b),
    "onto a point": lambda a, b: (a, 0 * b),
    "both points": lambda a, b: (0 * a, 0 * b),
    "nearly a point": lambda a, b: (1e-9 * a, b),
    "hardly there": lambda a, b: (1e-160 * a, b),
    "flat": lambda a, b: (a * [1, 1, 0], b),
    "flat both": lambda a, b: (a * [1, 0, 1], b * [1, 0, 1]),
    "a line": lambda a, b: (a * [0, 1, 0], b),
    "far off": lambda a, b: (a + 1e4, b - 1e4),
    "huge": lambda a, b: (1e12 * a, b),
    "no relation": lambda a, b: (a, a[:, ::-1] - 3.0),
}


@pytest.mark.parametrize("allow_reflection", [True, False])
@pytest.mark.parametrize("name", SPOILT)
def test_the_kernel_moves_points_where_tensor_operations_do(name, allow_reflection):
    src, dst = (torch.from_numpy(np.array(a)) for a in SPOILT[name](*hands()))
    ours = similarity_align(src, dst, allow_reflection)
    plain = plain_align(src, dst, allow_reflection)
    torch.testing.assert_close(ours, plain, atol=1e-9, rtol=0)
    assert bool(ours.isfinite().all())


@pytest.mark.parametrize("flat", [[1, 0, 1], [0, 1, 0]])
def test_where_the_truth_leaves_a_direction_open_errors_are_the_same(flat):
    # The truth lies in a plane or on a line: mirrored in it the prediction fits as well.
    src, dst = (torch.from_numpy(a) for a in hands())
    dst = dst * torch.tensor(flat)
    ours, plain = similarity_align(src, dst), plain_align(src, dst)
    torch.testing.assert_close(
        (ours - dst).norm(dim=2), (plain - dst).norm(dim=2), atol=1e-9, rtol=0
    )


def test_single_precision_comes_back_without_gradients():
    src, dst = (torch.from_numpy(a).float() for a in hands())
    ours = similarity_align(src, dst)
    assert ours.dtype == torch.float32
    exact = plain_align(src.double(), dst.double())
    torch.testing.assert_close(ours.double(), exact, atol=1e-7, rtol=0)
    src.requires_grad_()
    assert not similarity_align(src, dst).requires_grad
    rotated = similarity_align(src.detach().flip(2), dst.flip(2)).flip(2)  # not contiguous
    torch.testing.assert_close(rotated, ours, atol=1e-6, rtol=0)
    assert similarity_align(dst[:0], dst[:0]).shape == (0, 60, 3)


def matrices():
    rng = np.random.default_rng(0)
    for i in range(600):
        m = rng.normal(size=(3, 3)) * 10 ** rng.uniform(-8, 0, (3, 1))
        kind = i % 6
        if kind == 1:
            m = np.outer(m[0], m[1])
        if kind == 2:
            m = m @ np.diag([1, 1, 0]) @ rng.normal(size=(3, 3))
        if kind == 3:
            m = np.linalg.qr(m)[0] * 1e-3  # three equal values
        if kind == 4:
            m = np.diag(m[0])
        yield m * 10.0 ** rng.integers(-6, 3)
    yield np.zeros((3, 3))
    yield np.eye(3)[[2, 0, 1]]


def test_decomposition_of_all_kinds_of_matrices():
    for m in matrices():
        u, s, v = np.empty((3, 3)), np.empty(3), np.empty((3, 3))
        svd3(m, u, s, v)
        largest = np.abs(m).max()
        np.testing.assert_allclose(np.einsum("k,ki,kj->ij", s, u, v), m, atol=4e-15 * largest)
        np.testing.assert_allclose(s, np.linalg.svd(m)[1], atol=4e-15 * largest)
        for rows in (u, v):
            np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-12)
        if s[2] <= 1e-14 * s[0]:
            assert np.linalg.det(u @ v.T) == pytest.approx(1.0), "completed to a rotation"
