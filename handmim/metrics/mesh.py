"""Errors of meshes with and without alignment, and their F-scores: one pass per sample, compiled,
over points that stay in a core's cache."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.geometry.align import check_norms
from handmim.geometry.align_kernel import align_sample
from handmim.metrics.fscore import harmonic_means, squared_limits
from handmim.metrics.near_points import add_hits, room_for, sort_truth
from handmim.utils.kernels import njit

Points = NDArray[np.floating]


class MeshErrors(NamedTuple):
    """Of B samples of P points and T thresholds, float64; "al" is after similarity alignment with
    reflections allowed."""

    verts_m: NDArray[np.float64]  # [B, P] distances of corresponding points
    verts_al_m: NDArray[np.float64]  # [B, P]
    f: NDArray[np.float64]  # [B, T]
    f_al: NDArray[np.float64]  # [B, T]


def mesh_errors(pred_m: Points, gt_m: Points, thresholds_m: Sequence[float]) -> MeshErrors:
    """What `similarity_align`, `point_errors_m` and `f_scores` say of the same meshes, all at once.

    Args:
        pred_m, gt_m: [B, P, 3] metres, P >= 3.
        thresholds_m: T >= 1 thresholds of the F-scores.
    Raises: ValueError for other shapes, or values that are not finite.
    """
    if pred_m.shape != gt_m.shape or pred_m.ndim != 3 or pred_m.shape[1] < 3:
        raise ValueError(f"want two [B, P, 3] with P >= 3, got {pred_m.shape} and {gt_m.shape}")
    # only where needed is a copy made: other precision, read-only
    pred, gt = (np.require(points, np.float64, ["C", "W"]) for points in (pred_m, gt_m))
    (num, num_points, _), (order, limits) = pred.shape, squared_limits(thresholds_m)
    errors, norms = np.empty((2, num, num_points)), np.empty((2, num))
    hits = np.zeros((4, num, len(limits)), np.int64)
    _score(pred, gt, limits, errors, hits, norms)
    check_norms(torch.from_numpy(norms))
    shares = hits / num_points
    return MeshErrors(
        verts_m=errors[0],
        verts_al_m=errors[1],
        f=harmonic_means(shares[0], shares[1], order),
        f_al=harmonic_means(shares[2], shares[3], order),
    )


@njit(cache=True, nogil=True)
def _distances(a, b, out):  # type: ignore[no-untyped-def]
    for i in range(a.shape[0]):
        x, y, z = a[i, 0] - b[i, 0], a[i, 1] - b[i, 1], a[i, 2] - b[i, 2]
        out[i] = np.sqrt(x * x + y * y + z * z)


@njit(cache=True, nogil=True)
def _score(pred, gt, limits, errors, hits, norms):  # type: ignore[no-untyped-def]
    """[B, P, 3] twice and [T] limits to errors [2, B, P] as they are and aligned, hits [4, B, T] of
    prediction and truth as they are and aligned, and norms [2, B]."""
    num, num_points, _ = pred.shape
    room, space = room_for(num_points, num_points, len(limits)), np.empty((5, 3, 3))
    aligned = np.empty((num_points, 3))
    for b in range(num):
        norms[0, b], norms[1, b] = align_sample(pred[b], gt[b], True, aligned, space)
        _distances(pred[b], gt[b], errors[0, b])
        _distances(aligned, gt[b], errors[1, b])
        grid = sort_truth(gt[b], limits, room)
        add_hits(pred[b], gt[b], grid, limits, room, hits[0, b], hits[1, b])
        add_hits(aligned, gt[b], grid, limits, room, hits[2, b], hits[3, b])
