"""Supervised regression of a hand model, and the mean hand it starts from."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from handmim.geometry.camera import fit_weak, project_weak
from handmim.geometry.rotation import chordal_mean, nearest_rotation, rotation_from_view
from handmim.hand.model import HandLayer, JointConventions
from handmim.hand.skeleton import ROOT_JOINT
from handmim.losses.composite import StepWeights
from handmim.models.heads.hand_head import HandHead
from handmim.tasks.regression import Crops, RegressionTask
from handmim.types import HandBatch, HandState, Intrinsics


class HandRegressionTask(RegressionTask):
    """Image in, hand model out; the head is a `HandHead`."""

    head: HandHead

    def check_head(self, step_weights: StepWeights) -> None:
        """Raises: ValueError for a head without a mesh, a gradient for its parts, or its blocks."""
        head, depth = self.head, self.backbone.depth
        if not isinstance(head, HandHead):
            ways = "a head of the kind of pymaf, or task=keypoints loss=[direct_keypoints] (head)"
            raise ValueError(f"{type(head).__name__} regresses no hand model: {ways}")
        self.joint_conventions = JointConventions(head.hand)
        if any(not 1 <= block <= depth for block in head.tapped_blocks):
            blocks = list(head.tapped_blocks)
            raise ValueError(f"the head taps blocks {blocks} of a backbone that has 1 to {depth}")
        if unread := sorted(head.drawn - self.losses.needs):
            ways = f"loss=[...,{unread[0]}], or task.head.{unread[0]}=false"
            raise ValueError(f"the head draws {unread} and no loss reads them: {ways}")
        zeros = step_weights == "last" or (step_weights is not None and 0 in step_weights)
        if zeros and head.steps_train_alone:
            text = f"step_weights={step_weights} would leave steps of this head without a gradient"
            raise ValueError(f"{text}: task.head.detach=false, or weights above 0")

    def in_convention(self, state: Any, convention: Tensor, intrinsics: Intrinsics | None) -> Any:
        """A state with the joints of these conventions."""
        return self.joint_conventions.state(state, convention, self.head.crop_camera, intrinsics)

    def mean_estimate(self, batch: HandBatch) -> HandState:
        """The hand that the head starts from."""
        mean = self.head.start(len(batch.image), batch.intrinsics)[1]
        return self.in_convention(mean, batch.joint_convention, batch.intrinsics)

    def label_estimate(self, batch: HandBatch) -> HandState:
        """The labels: posed from MANO parameters where they are known, else the labelled mesh."""
        if not bool((batch.has_mano | (batch.has_verts & batch.joints_valid.all(dim=1))).all()):
            raise ValueError("predictor=ground_truth needs labels, and this set has none")
        camera = self.head.crop_camera
        root = batch.joints_cam_m[:, ROOT_JOINT, None]
        mesh = self.head.hand(batch.rotmats, batch.betas)
        posed = [p - mesh.joints_m[:, ROOT_JOINT, None] for p in (mesh.verts_m, mesh.joints_m)]
        cam = fit_weak(posed[1], batch.kp2d_crop_ndc, camera.scale0_per_m)
        in_crop = [project_weak(points, cam, camera.scale0_per_m) for points in posed]
        state = HandState(batch.rotmats, batch.betas, cam, *posed, *in_crop)
        state = self.in_convention(state, batch.joint_convention, None)
        is_posed = batch.has_mano[:, None, None]
        has_root = batch.has_K & batch.joints_valid[:, ROOT_JOINT]
        return state._replace(
            verts_root_m=torch.where(is_posed, state.verts_root_m, batch.verts_cam_m - root),
            joints_root_m=torch.where(is_posed, state.joints_root_m, batch.joints_cam_m - root),
            joints_crop_ndc=batch.kp2d_crop_ndc,  # of the true camera, not a weak one
            transl_cam_m=torch.where(has_root[:, None], root[:, 0], 0.0),
            is_metric=has_root,
        )

    @torch.no_grad()
    def measure_labels(self, crops: Crops, device: torch.device) -> None:
        """The mean hand, and the mean and deviation of the class token."""
        head, training = self.head, self.training
        head.set_mean_hand(*mean_hand(crops(), head.scale0_per_m, head.hand))
        if head.standardise_cls:
            backbone = self.backbone.to(device).eval()
            parts = (part.to(device) for batch in crops() for part in batch.image.split(64))
            tokens = torch.cat([backbone(part).cls.float().cpu() for part in parts])
            head.set_cls_statistics(tokens.mean(dim=0), tokens.std(dim=0, correction=0))
            self.train(training)


@torch.no_grad()
def mean_hand(
    crops: Iterable[HandBatch], scale0_per_m: float, hand: HandLayer
) -> tuple[Tensor, Tensor]:
    """Chordal mean rotations [16, 3, 3] and mean camera [3] of the labelled samples. Those without
    MANO parameters count with the rotation that brings the mean pose nearest to their joints, in 3D
    or else in the image; their fingers do not count. Where no sample has fingers, they are those of
    the mean pose. Raises: ValueError when no sample has MANO parameters or all joints."""
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
        raise ValueError("no training sample has MANO parameters or all 21 joints (data)")
    mean_fingers = chordal_mean(all_fingers) if len(all_fingers) else mean_pose.cpu()[1:]
    cam = all_cams.mean(dim=0) if len(all_cams) else torch.zeros(3)
    return torch.cat([chordal_mean(all_wrists)[None], mean_fingers]), cam
