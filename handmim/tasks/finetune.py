"""Supervised regression of a hand: backbone, head, losses; and the mean hand every regression
starts from."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from handmim.contracts import HandBatch, HandOutputs, HandSample, StepInfo, StepResult
from handmim.data.augment import HandAugment
from handmim.data.loader import batches
from handmim.geometry.align import root_align
from handmim.geometry.camera import fit_weak
from handmim.geometry.rotation import chordal_mean, nearest_rotation, rotation_from_view
from handmim.hand.model import HandLayer
from handmim.hand.rules import JointRules
from handmim.hand.skeleton import ROOT_JOINT
from handmim.losses.total import LossSum, Weighted
from handmim.models.heads.pymaf import PyMafHead
from handmim.models.vit import ViT
from handmim.tasks.finetune_pictures import draw_predictions


class HandRegressionTask(nn.Module):
    """Picture in, hand out.

    Args:
        backbone: ViT; `init_from` fills it before training.
        head: constructor of the head, called with `dim=`.
        losses: weighted terms by name.
        backbone_lr_scale: factor on the learning rate of the whole backbone.
        layer_decay: further factor per layer below the top.
    """

    def __init__(
        self,
        backbone: ViT,
        head: Callable[..., PyMafHead],
        losses: Mapping[str, Weighted],
        *,
        backbone_lr_scale: float = 1.0,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.mask_token.requires_grad_(False)  # nothing is hidden any more
        self.head = head(dim=backbone.embed_dim)
        self.joint_rules = JointRules(self.head.hand)
        self.losses = LossSum(losses)
        self.backbone_lr_scale, self.layer_decay = backbone_lr_scale, layer_decay

    def predict(self, image: Tensor, joint_rule: Tensor | None = None) -> HandOutputs:
        """Pictures to all refinement steps.

        Args:
            image: [B, 3, H, W] in [0, 1].
            joint_rule: [B] whose joints are wanted; None takes the hand model's own.
        """
        out = self.head(self.backbone(image))
        if joint_rule is None:
            return out
        return self.joint_rules.outputs(out, joint_rule, self.head.scale0_per_m)

    def forward(self, batch: HandBatch, info: StepInfo) -> StepResult:
        """Losses of one augmented batch."""
        out = self.predict(batch.image, batch.joint_rule)
        loss, scalars = self.losses(out, batch, info)
        return StepResult(loss=loss, scalars={"loss": loss.detach(), **scalars})

    def after_step(self, info: StepInfo) -> dict[str, float]:
        """Nothing follows the optimizer here."""
        return {}

    def lr_scales(self) -> dict[str, float]:
        """Lower rates for the backbone, falling towards its input."""
        top = self.backbone.depth + 1
        return {
            f"backbone.{name}": self.backbone_lr_scale
            * self.layer_decay ** (top - self.backbone.layer_of(name))
            for name, _ in self.backbone.named_parameters()
        }

    @torch.no_grad()
    def pictures(self, batch: HandBatch) -> dict[str, NDArray[np.uint8]]:
        """Input, prediction and truth of the first samples."""
        training = self.training
        self.eval()
        try:
            out = self.predict(batch.image[:8], batch.joint_rule[:8])
        finally:
            self.train(training)
        return {"predictions": draw_predictions(batch, out.steps[-1], self.head.hand.faces)}


@torch.no_grad()
def start_from_labels(
    task: HandRegressionTask,
    dataset: Dataset[HandSample],
    augment: HandAugment,
    device: torch.device,
    max_pictures: int = 2048,
    num_workers: int = 0,
) -> None:
    """Give the head what it measures from: the mean hand, and the mean and deviation of the class
    token.

    Args:
        task: with its backbone already initialised.
        dataset: labelled training crops.
        augment: whose evaluation crop is used.
        device: where class tokens are computed.
        max_pictures: of a larger set so many are looked at, the same ones every time.
        num_workers: loader processes.
    """
    total = len(dataset)  # type: ignore[arg-type]
    if total > max_pictures:
        order = np.random.default_rng(total).permutation(total)[:max_pictures]
        dataset = Subset(dataset, np.sort(order).tolist())
    scale0, hand = task.head.scale0_per_m, task.head.hand
    task.head.set_mean_hand(*mean_hand(dataset, augment, scale0, hand, num_workers=num_workers))
    if not task.head.standardise_cls:
        return
    training = task.training
    backbone, cls = task.backbone.to(device).eval(), []
    for stored in batches(dataset, 64, num_workers):
        image = augment.evaluate(stored.moved(device)).image
        cls.append(backbone(image).cls.float().cpu())
    tokens = torch.cat(cls)
    task.head.set_cls_statistics(tokens.mean(dim=0), tokens.std(dim=0, correction=0))
    task.train(training)


@torch.no_grad()
def mean_hand(
    dataset: Dataset[HandSample],
    augment: HandAugment,
    scale0_per_m: float,
    hand: HandLayer,
    batch_size: int = 256,
    num_workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """Chordal mean rotations and mean camera of the labelled samples.

    Samples without MANO parameters count with the rotation that brings the model's mean pose
    nearest to their joints, in 3D or else in the picture; their fingers say nothing. Where no
    sample has fingers, they are those of the model's mean pose.

    Args:
        dataset: labelled crops.
        augment: whose evaluation crop defines the ndc.
        scale0_per_m: of the head's camera.
        hand: the model.
        batch_size: samples read at a time.
        num_workers: loader processes.
    Returns: rotations [16, 3, 3] and camera [3].
    Raises: ValueError when no sample has MANO parameters or all joints in 3D or 2D.
    """
    mean_pose = hand.mean_rotmats.float()
    rest = hand(mean_pose[None], mean_pose.new_zeros(1, hand.num_betas)).joints_m.cpu()
    mean_pose = mean_pose.cpu()
    turns, fingers, cams = [], [], []
    for stored in batches(dataset, batch_size, num_workers):
        batch = augment.evaluate(stored)
        in_3d, in_2d = batch.joints_valid.all(dim=1), batch.kp2d_valid.all(dim=1)
        mano, by_3d = batch.has_mano, in_3d & ~batch.has_mano
        by_2d = in_2d & ~in_3d & ~mano
        flat = rotation_from_view(rest.expand(int(by_2d.sum()), -1, -1), batch.kp2d_crop_ndc[by_2d])
        turns += [
            batch.rotmats[mano, 0],
            nearest_rotation(rest.expand(int(by_3d.sum()), -1, -1), batch.joints_cam_m[by_3d]),
            flat,
        ]
        fingers.append(batch.rotmats[mano, 1:])
        for joints, rows in (
            (batch.joints_cam_m[in_2d & in_3d], in_2d & in_3d),
            (rest @ flat.transpose(1, 2), by_2d),
        ):
            joints_root_m = root_align(joints, joints, ROOT_JOINT)
            cams.append(fit_weak(joints_root_m, batch.kp2d_crop_ndc[rows], scale0_per_m))
    all_turns, all_fingers, all_cams = torch.cat(turns), torch.cat(fingers), torch.cat(cams)
    if not len(all_turns):
        raise ValueError(
            "no training sample has MANO parameters or all 21 joints: the mean hand is undefined "
            "(data)"
        )
    mean_fingers = chordal_mean(all_fingers) if len(all_fingers) else mean_pose[1:]
    cam = all_cams.mean(dim=0) if len(all_cams) else torch.zeros(3)
    return torch.cat([chordal_mean(all_turns)[None], mean_fingers]), cam
