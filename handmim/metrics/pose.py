"""Pose and mesh errors as the FreiHAND and HO-3D evaluators define them, batched; metres in,
millimetres out."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.geometry.align import align_sample, check_norms, similarity_align
from handmim.metrics.neighbours import (
    add_hits,
    harmonic_means,
    sort_gt,
    squared_limits,
    workspace,
)
from handmim.utils.kernels import njit

F_THRESHOLDS_M = (0.005, 0.015)
AUC_MAX_M = 0.05
AUC_STEPS = 100
_THRESHOLDS_M = np.linspace(0.0, AUC_MAX_M, AUC_STEPS)
# What a point adds whose error is a hit from threshold i on, in trapezoids: whole steps after it
# and half a step before it, but for the first.
_AREAS = np.minimum(AUC_STEPS - 0.5 - np.arange(AUC_STEPS), AUC_STEPS - 1) / (AUC_STEPS - 1)

# A mirror image fits by a reflection 0 to 0.6 times as badly as by a rotation, under up to 2 cm of
# noise. So do 0 % of the samples of mean, random and noisy hands, up to 1 % where depth is noise.
MIRROR_RATIO, MIRRORED_SHARE = 0.6, 0.03

KEYS = (
    "pa_mpjpe_mm", "pa_mpvpe_mm", "mpjpe_mm", "mpvpe_mm", "pa_f5", "pa_f15", "f5", "f15",
    "pa_auc_joints", "pa_auc_verts", "auc_joints", "auc_verts", "num_samples", "num_meshes",
)  # fmt: skip

Points = NDArray[np.floating]


def point_errors_m(pred_m: Tensor, gt_m: Tensor) -> Tensor:
    """Euclidean distances of corresponding points: [B, P, 3] twice -> [B, P] metres."""
    return (pred_m - gt_m).norm(dim=-1)


def mirrored(pred: Tensor, gt: Tensor) -> Tensor:
    """Which predictions are mirror images of the ground truth, whose aligned errors hide it:
    [B, P, 3] twice, any unit -> [B] bool."""
    with_it, without = (
        point_errors_m(similarity_align(pred, gt, allow_reflection=allowed), gt).mean(dim=1)
        for allowed in (True, False)
    )
    return with_it < MIRROR_RATIO * without


def crop_share_errors(pred_ndc: Tensor, gt_ndc: Tensor) -> Tensor:
    """Distances in the image as shares of the crop's side: two [B, P, 2] in ndc -> [B, P]."""
    return (pred_ndc - gt_ndc).norm(dim=-1) / 2  # ndc spans 2 per side


def sample_auc(errors_m: Tensor) -> Tensor:
    """Area under the share of hits (PCK) over 100 thresholds, evenly from 0 to 50 mm inclusive:
    [n, P] metres -> [n] float64.

    A hit is `<=`, a NaN is none; trapezoids, divided by 50 mm. A perfect score is 1, but an exact
    fit that leaves 1e-17 misses the threshold 0 and scores 1 - 1/198.
    """
    errors = errors_m.detach().to("cpu", torch.float64).contiguous().numpy()
    areas = np.empty(len(errors))
    _mean_areas(errors, _THRESHOLDS_M, _AREAS, areas)
    return torch.from_numpy(areas).to(errors_m.device)


@njit(cache=True, nogil=True)
def _mean_areas(errors_m, thresholds_m, areas, out):  # type: ignore[no-untyped-def]
    last = len(thresholds_m) - 1
    per_m = last / thresholds_m[last]
    for n in range(errors_m.shape[0]):
        total = 0.0
        for error in errors_m[n]:
            if error <= thresholds_m[last]:
                first = max(int(error * per_m) - 1, 0)  # before it, for any rounding
                while error > thresholds_m[first]:
                    first += 1
                total += areas[first]
        out[n] = total / errors_m.shape[1]


class MeshErrors(NamedTuple):
    """Of B samples of P points and T thresholds, float64; "al" is after similarity alignment with
    reflections allowed."""

    verts_m: NDArray[np.float64]  # [B, P] distances of corresponding points
    verts_al_m: NDArray[np.float64]  # [B, P]
    f: NDArray[np.float64]  # [B, T]
    f_al: NDArray[np.float64]  # [B, T]


def mesh_errors(pred_m: Points, gt_m: Points, thresholds_m: Sequence[float]) -> MeshErrors:
    """Results of `similarity_align`, `point_errors_m` and `f_scores` of [B, P, 3], P >= 3, in one
    compiled pass per sample.

    Raises: ValueError for other shapes, or values that are not finite.
    """
    if pred_m.shape != gt_m.shape or pred_m.ndim != 3 or pred_m.shape[1] < 3:
        raise ValueError(
            f"two [B, P, 3] with P >= 3 are required, got {pred_m.shape} and {gt_m.shape}"
        )
    # copied only where needed: other precision, read-only
    pred, gt = (np.require(points, np.float64, ["C", "W"]) for points in (pred_m, gt_m))
    (num, num_points, _), (order, limits) = pred.shape, squared_limits(thresholds_m)
    errors, norms = np.empty((2, num, num_points)), np.empty((2, num))
    hits = np.zeros((4, num, len(limits)), np.int64)
    _score(pred, gt, limits, errors, hits, norms)
    check_norms(torch.from_numpy(norms))
    shares = hits / num_points
    return MeshErrors(*errors, *harmonic_means(shares[::2], shares[1::2], order))


@njit(cache=True, nogil=True)
def _distances(a, b, out):  # type: ignore[no-untyped-def]
    for i in range(a.shape[0]):
        x, y, z = a[i, 0] - b[i, 0], a[i, 1] - b[i, 1], a[i, 2] - b[i, 2]
        out[i] = np.sqrt(x * x + y * y + z * z)


@njit(cache=True, nogil=True)
def _score(pred, gt, limits, errors, hits, norms):  # type: ignore[no-untyped-def]
    """[B, P, 3] twice and [T] limits to errors [2, B, P] as they are and aligned, hits [4, B, T] of
    prediction and ground truth as they are and aligned, and norms [2, B]."""
    num, num_points, _ = pred.shape
    work, space = workspace(num_points, num_points, len(limits)), np.empty((5, 3, 3))
    aligned = np.empty((num_points, 3))
    for b in range(num):
        norms[0, b], norms[1, b] = align_sample(pred[b], gt[b], True, aligned, space)
        _distances(pred[b], gt[b], errors[0, b])
        _distances(aligned, gt[b], errors[1, b])
        grid = sort_gt(gt[b], limits, work)
        add_hits(pred[b], gt[b], grid, limits, work, hits[0, b], hits[1, b])
        add_hits(aligned, gt[b], grid, limits, work, hits[2, b], hits[3, b])


class HandMetrics:
    """Accumulates predictions of any number of batches.

    Aligned ("pa_") metrics use a similarity with reflections allowed, for joints and vertices
    separately. Unaligned ones are relative to the index `root_joint` of prediction and ground
    truth; None compares absolute camera coordinates as the official scripts do.
    """

    def __init__(self, root_joint: int | None) -> None:
        self.root_joint = root_joint
        self._parts: dict[str, list[Tensor]] = defaultdict(list)
        self._mirrored: list[Tensor] = []

    @property
    def num_samples(self) -> int:
        """Samples that were added."""
        return sum(map(len, self._mirrored))

    def update(
        self,
        pred_joints_m: Tensor,
        pred_verts_m: Tensor,
        gt_joints_m: Tensor,
        gt_verts_m: Tensor,
        has_verts: Tensor | None = None,
    ) -> None:
        """Add a batch: joints [B, J, 3], vertices [B, V, 3] and which samples have them, [B] bool.

        Raises: ValueError for shapes that differ or values that are not finite.
        """
        tensors = (pred_joints_m, pred_verts_m, gt_joints_m, gt_verts_m)
        pred_joints, pred_verts, gt_joints, gt_verts = (t.detach().double() for t in tensors)
        joints_pa = similarity_align(pred_joints, gt_joints)
        self._parts["joints_pa"].append(point_errors_m(joints_pa, gt_joints))
        self._mirrored.append(mirrored(pred_joints, gt_joints))
        if self.root_joint is not None:
            pred_root = pred_joints[:, self.root_joint, None]
            gt_root = gt_joints[:, self.root_joint, None]
            pred_verts, pred_joints = pred_verts - pred_root, pred_joints - pred_root
            gt_verts, gt_joints = gt_verts - gt_root, gt_joints - gt_root
        self._parts["joints"].append(point_errors_m(pred_joints, gt_joints))
        if has_verts is not None:
            pred_verts, gt_verts = pred_verts[has_verts], gt_verts[has_verts]
        if not len(gt_verts):
            return
        errors = mesh_errors(pred_verts.cpu().numpy(), gt_verts.cpu().numpy(), F_THRESHOLDS_M)
        for name, values in zip(("verts", "verts_pa", "f", "f_pa"), errors, strict=True):
            self._parts[name].append(torch.from_numpy(values).to(gt_verts.device))

    def per_sample(self) -> dict[str, Tensor]:
        """Errors before any mean: joints, joints_pa [n, J] and, where vertices are known, verts,
        verts_pa [m, V] metres; f, f_pa [m, 2]."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}

    def mirrored_share(self) -> float:
        """Share of the added samples whose joints are `mirrored`."""
        return float(torch.cat(self._mirrored).double().mean())

    def compute(self) -> dict[str, float]:
        """All metrics, keys as in `KEYS`; without those of vertices when none are known.

        Raises: ValueError when nothing was added.
        """
        if not self._mirrored:
            raise ValueError("no sample was scored: the evaluation set is empty (data.val)")
        e = self.per_sample()
        metrics: dict[str, float] = {
            "num_samples": len(e["joints"]),
            "num_meshes": len(e.get("verts", ())),
        }
        for points, length in (("joints", "mpjpe_mm"), ("verts", "mpvpe_mm")):
            for suffix, prefix in (("_pa", "pa_"), ("", "")):
                if points + suffix in e:
                    errors_m = e[points + suffix]
                    metrics[prefix + length] = float(errors_m.mean()) * 1e3
                    metrics[f"{prefix}auc_{points}"] = float(sample_auc(errors_m).mean())
        for prefix, name in (("pa_", "f_pa"), ("", "f")):
            if name in e:
                at_5, at_15 = e[name].mean(dim=0).tolist()
                metrics |= {f"{prefix}f5": at_5, f"{prefix}f15": at_15}
        return {key: metrics[key] for key in KEYS if key in metrics}
