"""Labelled crops to model input, for a whole batch on the device: pixels and all labels share one
affine map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.data.colour import ColourJitter
from handmim.data.occlusion import HandCutOut, OccluderPaste
from handmim.data.pixels import sample_views
from handmim.geometry.crop import homogeneous, invert, px_from_px, similarity, transform_points
from handmim.geometry.rotation import rotation_about_z
from handmim.types import HandBatch, StepInfo
from handmim.utils.arguments import interval


def transform_labels(
    batch: HandBatch, crop_px: int, source_from_crop: Tensor, angle_rad: Tensor
) -> HandBatch:
    """Carry all labels along with a crop's scale, in-plane rotation and shift.

    The camera is rotated about its optical axis with the image, so K X / z = pixel holds before
    and after: K' = M K R_z(angle), X' = R_z(-angle) X with M the pixel map of the crop.

    Args:
        batch: labels of the stored crop, whose image is not cut here.
        crop_px: side of the new crop.
        source_from_crop: [B, 2, 3] new ndc -> stored ndc, with rotation angle_rad [B].
    """
    R = rotation_about_z(-angle_rad)  # [B, 3, 3]
    crop_from_source = invert(source_from_crop)
    px_map = homogeneous(px_from_px(crop_from_source, crop_px, batch.image.shape[-1]))
    root = (R @ batch.rotmats[:, 0]).unsqueeze(1)
    return batch._replace(
        K_crop_px=px_map @ batch.K_crop_px @ R.transpose(1, 2),
        kp2d_crop_ndc=transform_points(crop_from_source, batch.kp2d_crop_ndc),
        joints_cam_m=batch.joints_cam_m @ R.transpose(1, 2),
        verts_cam_m=batch.verts_cam_m @ R.transpose(1, 2),
        rotmats=torch.cat([root, batch.rotmats[:, 1:]], dim=1),
    )


@dataclass(kw_only=True, eq=False)
class HandAugment:
    """Random (or, for evaluation, fixed) crop of every labelled image."""

    img_px: int  # side of the model input
    scale: Sequence[float] = (0.8, 1.0)  # side of the crop, log-uniform; evaluation takes the mean
    rotation_deg: float = 30.0  # +- this, of `rotation_prob` of the samples
    rotation_prob: float = 1.0
    shift_ndc: float = 0.08  # of the crop's centre, +-
    colour: ColourJitter | None = None
    cut_out: HandCutOut | None = None  # rectangles erased last; training only
    occluder: OccluderPaste | None = None  # lit and blurred with the hand; training only

    def __post_init__(self) -> None:
        self.scale = interval("scale", self.scale)

    def _apply(
        self, batch: HandBatch, scale: Tensor, angle_rad: Tensor, shift: Tensor
    ) -> HandBatch:
        device = batch.image.device
        source_from_crop = similarity(scale, angle_rad, shift).to(device)
        labels = transform_labels(batch, self.img_px, source_from_crop, angle_rad.to(device))
        return labels._replace(image=self.cut(batch.image, source_from_crop))

    def cut(self, stored: Tensor, source_from_crop: Tensor) -> Tensor:
        """The model's images [B, 3, img_px, img_px] in [0, 1] out of stored crops [B, 3, S, S]
        uint8; source_from_crop [B, 2, 3] is new ndc -> stored ndc."""
        source = stored.float() / 255.0
        # Sampling reads four pixels: crops much larger than the input are shrunk by area before.
        stored_px = source.shape[-1]
        shrink = int(self.scale[0] * stored_px / self.img_px)
        if shrink > 1:
            source = F.interpolate(source, size=(stored_px // shrink,) * 2, mode="area")
        return sample_views(source, source_from_crop, self.img_px)

    def __call__(self, batch: HandBatch, generator: torch.Generator, info: StepInfo) -> HandBatch:
        """Random crop for training; all randomness comes from the CPU generator."""
        b = len(batch.image)
        u = torch.rand(b, 5, generator=generator) * 2 - 1
        low, high = self.scale
        scale = torch.exp(math.log(low) + (u[:, 0] + 1) / 2 * math.log(high / low))
        rotated = (u[:, 4] + 1) / 2 < self.rotation_prob
        angle = u[:, 1] * math.radians(self.rotation_deg) * rotated
        out = self._apply(batch, scale, angle, u[:, 2:4] * self.shift_ndc)
        image, kp2d = out.image, (out.kp2d_crop_ndc, out.kp2d_valid)
        if self.occluder is not None:
            image = self.occluder(image, *kp2d, generator)
        if self.colour is not None:
            image = self.colour(image, generator)
        if self.cut_out is not None:
            image = self.cut_out(image, *kp2d, generator)
        return out._replace(image=image)

    def evaluate(self, batch: HandBatch) -> HandBatch:
        """The fixed crop of evaluation: mean scale, upright, centred, untouched pixels."""
        return self.evaluate_at(batch, 0.0, 1.0)

    def evaluate_at(self, batch: HandBatch, angle_rad: float, scale: float) -> HandBatch:
        """The crop of evaluation rotated about its centre, its side `scale` times as long."""
        b = len(batch.image)
        side = torch.full((b,), self.evaluation_scale * scale)
        return self._apply(batch, side, torch.full((b,), angle_rad), torch.zeros(b, 2))

    def evaluation_labels(self, batch: HandBatch) -> HandBatch:
        """Labels as `evaluate` gives them, beside the stored image."""
        b, device = len(batch.image), batch.image.device
        side, zero = torch.full((b,), self.evaluation_scale), torch.zeros(b)
        source_from_crop = similarity(side, zero, torch.zeros(b, 2)).to(device)
        return transform_labels(batch, self.img_px, source_from_crop, zero.to(device))

    @property
    def evaluation_scale(self) -> float:
        """Side of the evaluation crop relative to the stored one."""
        return math.sqrt(self.scale[0] * self.scale[1])
