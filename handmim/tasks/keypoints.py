"""Supervised regression of 21 joints without a hand model, from images that have keypoints but no
meshes; also the quickest fair comparison of backbones."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from handmim.geometry.camera import fit_weak
from handmim.hand.skeleton import ROOT_JOINT
from handmim.models.heads.direct import DirectHead, KeypointOutputs, KeypointState
from handmim.tasks.regression import RegressionTask
from handmim.types import HandBatch, Intrinsics


class KeypointRegressionTask(RegressionTask):
    """Image in, root-relative joints in metres and their image positions out.

    Without a mesh, joints cannot be carried from one definition to another: the task learns that of
    its training labels, and a mix of sources trains it towards something between theirs.
    """

    head: DirectHead

    @property
    def hand(self) -> None:
        """There is no hand model."""
        return

    def _outputs(self, image: Tensor) -> KeypointOutputs:
        head: DirectHead = self._active("head")
        return head(self.active_backbone(image))

    def outputs(self, batch: HandBatch) -> KeypointOutputs:
        """The mean of the training labels, then the estimate."""
        return self._outputs(batch.image)

    def predict(
        self,
        image: Tensor,
        joint_convention: Tensor | None = None,
        intrinsics: Intrinsics | None = None,
    ) -> KeypointState:
        """The joints as the training labels define them, whatever the rule."""
        return self._outputs(image).steps[-1]

    def mean_estimate(self, batch: HandBatch) -> KeypointState:
        """The mean of the training labels, for every image."""
        return self.head.mean_state(len(batch.image))

    def label_estimate(self, batch: HandBatch) -> KeypointState:
        """The labelled joints."""
        labelled = batch.joints_valid.any(dim=1) | batch.kp2d_valid.any(dim=1)
        if not bool(labelled.all()):
            raise ValueError("predictor=ground_truth needs labels, and this set has none")
        root = batch.joints_cam_m[:, ROOT_JOINT, None]
        return KeypointState(batch.joints_cam_m - root, batch.kp2d_crop_ndc)

    def measure_labels(
        self, crops: Callable[[], Iterator[HandBatch]], device: torch.device
    ) -> None:
        """The mean joints, and where the head needs it the mean scale."""
        self.head.set_mean_joints(*mean_joints(crops()))
        if self.head.coords == "25d":
            self.head.set_mean_scale(mean_scale(crops()))


@torch.no_grad()
def mean_joints(crops: Iterable[HandBatch]) -> tuple[Tensor, Tensor]:
    """Mean of the labels, joint by joint over the samples that have it; 0 where none has: [21, 3]
    root-relative metres and [21, 2] crop ndc.

    Raises: ValueError when no sample has a joint, or joints in 3D always lack the root.
    """
    total, count = torch.zeros(21, 5, dtype=torch.float64), torch.zeros(21, 2, dtype=torch.int64)
    columns = torch.tensor([3, 2])
    for batch in crops:
        root = batch.joints_cam_m[:, ROOT_JOINT, None]
        in_3d = batch.joints_valid & batch.joints_valid[:, ROOT_JOINT, None]
        labels = torch.cat([batch.joints_cam_m - root, batch.kp2d_crop_ndc], dim=-1).double()
        valid = torch.stack([in_3d, batch.kp2d_valid], dim=-1)
        total += torch.where(valid.repeat_interleave(columns, dim=-1), labels, 0.0).sum(dim=0)
        count += valid.sum(dim=0)
    if not int(count.sum()):
        raise ValueError(
            "no training sample has a joint in the image, or joints in 3D with the root: the "
            "mean joints are undefined (data)"
        )
    mean = total / count.clamp(min=1).repeat_interleave(columns, dim=-1)
    return mean[:, :3].float(), mean[:, 3:].float()


@torch.no_grad()
def mean_scale(crops: Iterable[HandBatch], scale0_per_m: float = 8.0) -> float:
    """Geometric mean of the hands' sizes in the image, ndc units per metre of the least-squares
    weak-perspective camera, over samples with all joints in 3D and 2D; else `scale0_per_m`."""
    logs = []
    for batch in crops:
        whole = batch.joints_valid.all(dim=1) & batch.kp2d_valid.all(dim=1)
        joints = batch.joints_cam_m[whole]
        root = joints[:, ROOT_JOINT, None]
        logs.append(fit_weak(joints - root, batch.kp2d_crop_ndc[whole], scale0_per_m)[:, 0])
    sizes = torch.cat(logs)
    return scale0_per_m * (float(sizes.mean().exp()) if len(sizes) else 1.0)
