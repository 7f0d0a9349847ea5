"""Pose and mesh errors as the FreiHAND and HO-3D evaluators define them, batched; metres in,
millimetres out."""

import torch
from torch import Tensor
from torchmetrics import Metric

from handmim.geometry.align import root_align, similarity_align
from handmim.metrics.auc import pck_auc
from handmim.metrics.mesh import mesh_errors

F_THRESHOLDS_M = (0.005, 0.015)

# A mirror image fits by a reflection 0 to 0.6 times as badly as by a rotation, under up to 2 cm of
# noise. So do 0 % of the samples of mean, random and noisy hands, up to 1 % where depth is noise.
MIRROR_RATIO, MIRRORED_SHARE = 0.6, 0.03

KEYS = (
    "pa_mpjpe_mm", "pa_mpvpe_mm", "mpjpe_mm", "mpvpe_mm", "pa_f5", "pa_f15", "f5", "f15",
    "pa_auc_joints", "pa_auc_verts", "auc_joints", "auc_verts", "num_samples", "num_meshes",
)  # fmt: skip
VERT_KEYS = (
    "pa_mpvpe_mm", "mpvpe_mm", "pa_f5", "pa_f15", "f5", "f15", "pa_auc_verts", "auc_verts",
)  # fmt: skip


def point_errors_m(pred_m: Tensor, gt_m: Tensor) -> Tensor:
    """Euclidean distances of corresponding points: [B, P, 3] twice -> [B, P] metres."""
    return (pred_m - gt_m).norm(dim=-1)


def mirrored(pred: Tensor, gt: Tensor) -> Tensor:
    """Which predictions are mirror images of the truth, whose aligned errors hide it: [B, P, 3]
    twice, any unit -> [B] bool."""
    with_it, without = (
        point_errors_m(similarity_align(pred, gt, allow_reflection=allowed), gt).mean(dim=1)
        for allowed in (True, False)
    )
    return with_it < MIRROR_RATIO * without


def crop_share_errors(pred_ndc: Tensor, gt_ndc: Tensor) -> Tensor:
    """Distances in the picture as shares of the crop's side: two [B, P, 2] in ndc -> [B, P]."""
    return (pred_ndc - gt_ndc).norm(dim=-1) / 2  # ndc spans 2 per side


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
    mirrored: list[Tensor]

    def __init__(self, root_joint: int | None, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.root_joint = root_joint
        for name in ("joints", "verts", "joints_pa", "verts_pa", "f", "f_pa", "mirrored"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        pred_joints_m: Tensor,
        pred_verts_m: Tensor,
        gt_joints_m: Tensor,
        gt_verts_m: Tensor,
        has_verts: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            pred_joints_m, gt_joints_m: [B, J, 3].
            pred_verts_m, gt_verts_m: [B, V, 3].
            has_verts: [B] bool, samples whose vertices are known; None when all are.
        Raises: ValueError for shapes that differ or values that are not finite.
        """
        tensors = [
            t.detach().double() for t in (pred_joints_m, pred_verts_m, gt_joints_m, gt_verts_m)
        ]
        pred_joints, pred_verts, gt_joints, gt_verts = tensors
        joints_pa = similarity_align(pred_joints, gt_joints)
        self.joints_pa.append(point_errors_m(joints_pa, gt_joints))
        self.mirrored.append(mirrored(pred_joints, gt_joints))
        if self.root_joint is not None:
            pred_verts = root_align(pred_verts, pred_joints, self.root_joint)
            gt_verts = root_align(gt_verts, gt_joints, self.root_joint)
            pred_joints = root_align(pred_joints, pred_joints, self.root_joint)
            gt_joints = root_align(gt_joints, gt_joints, self.root_joint)
        self.joints.append(point_errors_m(pred_joints, gt_joints))
        if has_verts is not None:
            pred_verts, gt_verts = pred_verts[has_verts], gt_verts[has_verts]
        if not len(gt_verts):
            return
        pair = pred_verts.cpu().numpy(), gt_verts.cpu().numpy()
        for state, values in zip(
            (self.verts, self.verts_pa, self.f, self.f_pa),
            mesh_errors(*pair, F_THRESHOLDS_M),
            strict=True,
        ):
            state.append(torch.from_numpy(values).to(gt_verts.device))

    def per_sample(self) -> dict[str, Tensor]:
        """Errors before any mean: joints, joints_pa [n, J] and, of samples with known vertices,
        verts, verts_pa [m, V] metres; f, f_pa [m, 2]."""
        names = ("joints", "verts", "joints_pa", "verts_pa", "f", "f_pa")
        state = {name: getattr(self, name) for name in names}
        return {k: torch.cat(v) if isinstance(v, list) else v for k, v in state.items() if len(v)}

    def mirrored_share(self) -> float:
        """Share of the added samples whose joints are `mirrored`."""
        found = self.mirrored
        return float((torch.cat(found) if isinstance(found, list) else found).double().mean())

    def compute(self) -> dict[str, float]:
        """All figures, keys as in `KEYS`; without those of `VERT_KEYS` when no vertices are known.

        Raises: ValueError when nothing was added.
        """
        if not len(self.joints):
            raise ValueError("no sample was scored: the evaluation set is empty (data.val)")
        e = self.per_sample()
        figures = {
            "pa_mpjpe_mm": float(e["joints_pa"].mean()) * 1e3,
            "mpjpe_mm": float(e["joints"].mean()) * 1e3,
            "pa_auc_joints": float(pck_auc(e["joints_pa"])),
            "auc_joints": float(pck_auc(e["joints"])),
            "num_samples": len(e["joints"]),
            "num_meshes": len(e.get("verts", ())),
        }
        if "verts" not in e:
            return figures
        f, f_pa = e["f"].mean(dim=0), e["f_pa"].mean(dim=0)
        figures |= {
            "pa_mpvpe_mm": float(e["verts_pa"].mean()) * 1e3,
            "mpvpe_mm": float(e["verts"].mean()) * 1e3,
            "pa_f5": float(f_pa[0]),
            "pa_f15": float(f_pa[1]),
            "f5": float(f[0]),
            "f15": float(f[1]),
            "pa_auc_verts": float(pck_auc(e["verts_pa"])),
            "auc_verts": float(pck_auc(e["verts"])),
        }
        return {key: figures[key] for key in KEYS}
