"""Supervised regression of a hand model, and the mean hand it starts from."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from handmim.geometry.camera import fit_weak, project_weak
from handmim.geometry.rotation import chordal_mean, nearest_rotation, rotation_from_view
from handmim.hand.model import HandLayer, JointConventions
from handmim.hand.skeleton import ROOT_JOINT
from handmim.losses.composite import StepWeights
from handmim.models.heads.hand_head import HandHead
from handmim.tasks.regression import RegressionTask
from handmim.types import HandBatch, HandOutputs, HandState, Intrinsics


class HandRegressionTask(RegressionTask):
    """Image in, hand model out; the head is a `HandHead`."""

    head: HandHead

    def check_head(self, step_weights: StepWeights) -> None:
        """Raises: ValueError for a head without a mesh, parts of it without a gradient, and missing
        blocks."""
        head, depth = self.head, self.backbone.depth
        if not isinstance(head, HandHead):
            raise ValueError(
                f"{type(head).__name__} regresses no hand model: a head of the kind of pymaf, "
                "or task=keypoints loss=[direct_keypoints] (head)"
            )
        self.joint_conventions = JointConventions(head.hand)
        if any(not 1 <= block <= depth for block in head.tapped_blocks):
            raise ValueError(
                f"the head taps blocks {list(head.tapped_blocks)} of a backbone that has 1 to "
                f"{depth}"
            )
        unread = sorted(head.drawn - self.losses.needs)
        if unread:
            raise ValueError(
                f"the head draws {unread} and no loss reads them: loss=[...,{unread[0]}], or "
                f"task.head.{unread[0]}=false"
            )
        zeros = step_weights == "last" or (step_weights is not None and 0 in step_weights)
        if zeros and head.steps_train_alone:
            raise ValueError(
                f"step_weights={step_weights} would leave steps of this head without any gradient, "
                "for each trains by its own estimate alone: task.head.detach=false, or weights "
                "above 0"
            )

    @property
    def hand(self) -> HandLayer:
        """The hand model that is regressed."""
        return self.head.hand

    def refinements(self, image: Tensor, intrinsics: Intrinsics | None = None) -> HandOutputs:
        """Images to the mean hand and all refinement steps, in the hand model's own convention."""
        head: HandHead = self._active("head")
        out: HandOutputs = head(self.active_backbone(image, taps=head.tapped_blocks), intrinsics)
        return out

    def predict(
        self,
        image: Tensor,
        joint_convention: Tensor | None = None,
        intrinsics: Intrinsics | None = None,
    ) -> HandState:
        """The last refinement; see `RegressionTask.predict`."""
        state = self.refinements(image, intrinsics).steps[-1]
        if joint_convention is None:
            return state
        return self.joint_conventions.state(state, joint_convention, self.head.camera, intrinsics)

    def outputs(self, batch: HandBatch) -> HandOutputs:
        """All refinement steps in the samples' joint conventions."""
        out = self.refinements(batch.image, batch.intrinsics)
        to = batch.joint_convention, self.head.camera, batch.intrinsics
        return out._replace(steps=tuple(self.joint_conventions.state(s, *to) for s in out.steps))

    def mean_estimate(self, batch: HandBatch) -> HandState:
        """The hand that the head starts from."""
        mean = self.head.start(len(batch.image), batch.intrinsics)[1]
        return self.joint_conventions.state(
            mean, batch.joint_convention, self.head.camera, batch.intrinsics
        )

    def label_estimate(self, batch: HandBatch) -> HandState:
        """The labels: posed from MANO parameters where they are known, else the labelled mesh."""
        if not bool((batch.has_mano | (batch.has_verts & batch.joints_valid.all(dim=1))).all()):
            raise ValueError("predictor=ground_truth needs labels, and this set has none")
        camera = self.head.camera
        scale0 = camera.scale0_per_m
        root = batch.joints_cam_m[:, ROOT_JOINT, None]
        mesh = self.hand(batch.rotmats, batch.betas)
        origin_m = mesh.joints_m[:, ROOT_JOINT, None]
        verts, joints = mesh.verts_m - origin_m, mesh.joints_m - origin_m
        cam = fit_weak(joints, batch.kp2d_crop_ndc, scale0)
        state = HandState(
            rotmats=batch.rotmats,
            betas=batch.betas,
            cam=cam,
            verts_root_m=verts,
            joints_root_m=joints,
            verts_crop_ndc=project_weak(verts, cam, scale0),
            joints_crop_ndc=project_weak(joints, cam, scale0),
        )
        state = self.joint_conventions.state(state, batch.joint_convention, camera)
        posed = batch.has_mano[:, None, None]
        has_root = batch.has_K & batch.joints_valid[:, ROOT_JOINT]
        return state._replace(
            verts_root_m=torch.where(posed, state.verts_root_m, batch.verts_cam_m - root),
            joints_root_m=torch.where(posed, state.joints_root_m, batch.joints_cam_m - root),
            joints_crop_ndc=batch.kp2d_crop_ndc,  # of the true camera, not a weak one
            transl_cam_m=torch.where(has_root[:, None], root[:, 0], 0.0),
            is_metric=has_root,
        )

    @torch.no_grad()
    def measure_labels(
        self, crops: Callable[[], Iterator[HandBatch]], device: torch.device
    ) -> None:
        """The mean hand, and the mean and deviation of the class token."""
        mean = mean_hand(crops(), self.head.camera.scale0_per_m, self.hand)
        self.head.set_mean_hand(*mean)
        if not self.head.standardise_cls:
            return
        training = self.training
        backbone = self.backbone.to(device).eval()
        parts = (part.to(device) for batch in crops() for part in batch.image.split(64))
        tokens = torch.cat([backbone(part).cls.float().cpu() for part in parts])
        self.head.set_cls_statistics(tokens.mean(dim=0), tokens.std(dim=0, correction=0))
        self.train(training)


@torch.no_grad()
def mean_hand(
    crops: Iterable[HandBatch], scale0_per_m: float, hand: HandLayer
) -> tuple[Tensor, Tensor]:
    """Chordal mean rotations [16, 3, 3] and mean camera [3] of the labelled samples.

    Samples without MANO parameters count with the rotation that brings the model's mean pose
    nearest to their joints, in 3D or else in the image; their fingers do not count. Where no
    sample has fingers, they are those of the model's mean pose.

    Raises: ValueError when no sample has MANO parameters or all joints in 3D or 2D.
    """
    mean_pose = hand.mean_rotmats.float()
    rest = hand(mean_pose[None], mean_pose.new_zeros(1, hand.num_betas)).joints_m.cpu()
    wrists, fingers, cams = [], [], []
    for batch in crops:
        in_3d, in_2d = batch.joints_valid.all(dim=1), batch.kp2d_valid.all(dim=1)
        mano, by_3d = batch.has_mano, in_3d & ~batch.has_mano
        by_2d = in_2d & ~in_3d & ~mano
        flat = rotation_from_view(rest.expand(int(by_2d.sum()), -1, -1), batch.kp2d_crop_ndc[by_2d])
        wrists += [
            batch.rotmats[mano, 0],
            nearest_rotation(rest.expand(int(by_3d.sum()), -1, -1), batch.joints_cam_m[by_3d]),
            flat,
        ]
        fingers.append(batch.rotmats[mano, 1:])
        for joints, rows in (
            (batch.joints_cam_m[in_2d & in_3d], in_2d & in_3d),
            (rest @ flat.transpose(1, 2), by_2d),
        ):
            joints_root_m = joints - joints[:, ROOT_JOINT, None]
            cams.append(fit_weak(joints_root_m, batch.kp2d_crop_ndc[rows], scale0_per_m))
    all_wrists, all_fingers, all_cams = torch.cat(wrists), torch.cat(fingers), torch.cat(cams)
    if not len(all_wrists):
        raise ValueError(
            "no training sample has MANO parameters or all 21 joints: the mean hand is undefined "
            "(data)"
        )
    mean_fingers = chordal_mean(all_fingers) if len(all_fingers) else mean_pose.cpu()[1:]
    cam = all_cams.mean(dim=0) if len(all_cams) else torch.zeros(3)
    return torch.cat([chordal_mean(all_wrists)[None], mean_fingers]), cam
