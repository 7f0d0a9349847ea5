"""Pose and mesh errors as the FreiHAND and HO-3D evaluators define them, batched; metres in,
millimetres out."""

import torch
from torch import Tensor
from torchmetrics import Metric

from handmim.geometry.align import root_align, similarity_align
from handmim.metrics.fscore import f_scores

AUC_MAX_M = 0.05
AUC_STEPS = 100
F_THRESHOLDS_M = (0.005, 0.015)

KEYS = (
    "pa_mpjpe_mm", "pa_mpvpe_mm", "mpjpe_mm", "mpvpe_mm", "pa_f5", "pa_f15", "f5", "f15",
    "pa_auc_joints", "pa_auc_verts", "auc_joints", "auc_verts", "num_samples",
)  # fmt: skip


def point_errors_m(pred_m: Tensor, gt_m: Tensor) -> Tensor:
    """Euclidean distances of corresponding points: [B, P, 3] twice -> [B, P] metres."""
    return (pred_m - gt_m).norm(dim=-1)


def pck_auc(errors_m: Tensor) -> Tensor:
    """Area under the share of hits over 100 thresholds, evenly from 0 to 50 mm inclusive.

    A hit is `<=`; trapezoids, divided by 50 mm; per point over samples, then the mean over points.
    A perfect score is 1, but an exact fit that leaves 1e-17 misses the threshold 0 and scores 1 -
    1/198.

    Args:
        errors_m: [n, P] float64 metres.
    Returns: scalar.
    """
    thresholds = torch.linspace(0.0, AUC_MAX_M, AUC_STEPS, dtype=torch.float64)
    # first[i] is the first threshold that counts error i as a hit; counting them replaces a loop
    # over thresholds
    first = torch.searchsorted(thresholds, errors_m.double().contiguous())
    hits = torch.bincount(first.flatten(), minlength=AUC_STEPS + 1)[:AUC_STEPS].cumsum(0)
    pck = hits.double() / errors_m.numel()
    return torch.trapezoid(pck, thresholds) / AUC_MAX_M


class HandMetrics(Metric):
    """Accumulates predictions of any number of batches and processes.

    Aligned ("pa_") figures use a similarity with reflections allowed, for joints and vertices
    separately. Unaligned ones are relative to `root_joint` of prediction and truth, or absolute
    when it is None.

    Args:
        root_joint: index of the root joint; None compares absolute camera coordinates as the
            official scripts do.
    """

    full_state_update = False
    joints: list[Tensor]
    verts: list[Tensor]
    joints_pa: list[Tensor]
    verts_pa: list[Tensor]
    f: list[Tensor]
    f_pa: list[Tensor]

    def __init__(self, root_joint: int | None, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.root_joint = root_joint
        for name in ("joints", "verts", "joints_pa", "verts_pa", "f", "f_pa"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        pred_joints_m: Tensor,
        pred_verts_m: Tensor,
        gt_joints_m: Tensor,
        gt_verts_m: Tensor,
    ) -> None:
        """Add a batch.

        Args:
            pred_joints_m, gt_joints_m: [B, J, 3].
            pred_verts_m, gt_verts_m: [B, V, 3].
        Raises: ValueError for shapes that differ or values that are not finite.
        """
        tensors = [
            t.detach().double() for t in (pred_joints_m, pred_verts_m, gt_joints_m, gt_verts_m)
        ]
        pred_joints, pred_verts, gt_joints, gt_verts = tensors
        joints_pa = similarity_align(pred_joints, gt_joints)
        verts_pa = similarity_align(pred_verts, gt_verts)
        if self.root_joint is not None:
            pred_verts = root_align(pred_verts, pred_joints, self.root_joint)
            gt_verts_root = root_align(gt_verts, gt_joints, self.root_joint)
            pred_joints = root_align(pred_joints, pred_joints, self.root_joint)
            gt_joints_root = root_align(gt_joints, gt_joints, self.root_joint)
        else:
            gt_verts_root, gt_joints_root = gt_verts, gt_joints
        self.joints.append(point_errors_m(pred_joints, gt_joints_root))
        self.verts.append(point_errors_m(pred_verts, gt_verts_root))
        self.joints_pa.append(point_errors_m(joints_pa, gt_joints))
        self.verts_pa.append(point_errors_m(verts_pa, gt_verts))
        self.f.append(f_scores(pred_verts, gt_verts_root, F_THRESHOLDS_M))
        self.f_pa.append(f_scores(verts_pa, gt_verts, F_THRESHOLDS_M))

    def per_sample(self) -> dict[str, Tensor]:
        """Errors before any mean: joints, verts, joints_pa, verts_pa [n, points] metres; f, f_pa
        [n, 2]."""
        names = ("joints", "verts", "joints_pa", "verts_pa", "f", "f_pa")
        state = {name: getattr(self, name) for name in names}
        return {k: torch.cat(v) if isinstance(v, list) else v for k, v in state.items()}

    def compute(self) -> dict[str, float]:
        """All figures, keys as in `KEYS`.

        Raises: ValueError when nothing was added.
        """
        if not len(self.joints):
            raise ValueError("no sample was scored: the evaluation set is empty (data.val)")
        e = self.per_sample()
        f, f_pa = e["f"].mean(dim=0), e["f_pa"].mean(dim=0)
        return {
            "pa_mpjpe_mm": float(e["joints_pa"].mean()) * 1e3,
            "pa_mpvpe_mm": float(e["verts_pa"].mean()) * 1e3,
            "mpjpe_mm": float(e["joints"].mean()) * 1e3,
            "mpvpe_mm": float(e["verts"].mean()) * 1e3,
            "pa_f5": float(f_pa[0]),
            "pa_f15": float(f_pa[1]),
            "f5": float(f[0]),
            "f15": float(f[1]),
            "pa_auc_joints": float(pck_auc(e["joints_pa"])),
            "pa_auc_verts": float(pck_auc(e["verts_pa"])),
            "auc_joints": float(pck_auc(e["joints"])),
            "auc_verts": float(pck_auc(e["verts"])),
            "num_samples": len(e["joints"]),
        }
