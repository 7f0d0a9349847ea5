"""The camera of a regressed hand in its crop: weak perspective (log(s / s0), tx, ty). Where the
crop's intrinsics are known it fixes the root translation, by the pinhole camera with the same
first-order image of the root."""

from dataclasses import dataclass

import torch
from torch import Tensor

from handmim.geometry import camera as pinhole_camera
from handmim.geometry.camera import ndc_from_px, project_weak, px_from_ndc
from handmim.geometry.crop import invert, scale_of, transform_points
from handmim.types import Intrinsics
from handmim.utils.arguments import above, one_of

CAMERAS = ("weak", "pinhole")
MIN_DEPTH_M = 0.02  # nearer points are not projected; early guesses may stand behind the camera


def _usable_intrinsics(intrinsics: Intrinsics) -> Tensor:
    """K in fp32, the identity where it is not known."""
    eye = torch.eye(3, device=intrinsics.K_crop_px.device)
    return torch.where(intrinsics.has_K[:, None, None], intrinsics.K_crop_px.float(), eye)


@dataclass(frozen=True, slots=True)
class CropCamera:
    """The camera of a head's predictions."""

    kind: str = "weak"  # or "pinhole": the crop's intrinsics where they are known
    scale0_per_m: float = 8.0  # s0, ndc units per metre of a typical hand

    def __post_init__(self) -> None:
        one_of("camera", self.kind, CAMERAS)
        above(0, scale0_per_m=self.scale0_per_m)

    def root_translation(
        self, cam: Tensor, intrinsics: Intrinsics | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Root joint [B, 3] in metres, zero where it is not metric, and where it is, [B] bool; None
        twice by a weak camera.

        s ndc units per metre are s S / 2 pixels per metre, and a pinhole shows f / Z: Z = 2 f / (s
        S), where f is the geometric mean of both focal lengths. The root is seen at s (tx, ty).
        """
        if self.kind == "weak":
            return None, None
        if intrinsics is None:
            return cam.new_zeros(len(cam), 3), cam.new_zeros(len(cam), dtype=torch.bool)
        K, has_K = _usable_intrinsics(intrinsics), intrinsics.has_K[:, None]
        cam = torch.where(has_K, cam, 0.0)  # what is not known must not reach gradients either
        scale = self.scale0_per_m * cam[:, 0].exp()
        depth = 2.0 * scale_of(K) / (scale * intrinsics.img_px)
        seen_px = px_from_ndc(scale[:, None] * cam[:, 1:], intrinsics.img_px)
        # The upper rows of K map (X / Z, Y / Z) to pixels.
        ray = transform_points(invert(K[:, :2]), seen_px[:, None]).squeeze(1)
        transl = depth[:, None] * torch.cat([ray, torch.ones_like(depth)[:, None]], dim=1)
        return torch.where(has_K, transl, 0.0), intrinsics.has_K

    def project(
        self,
        points_root_m: Tensor,
        cam: Tensor,
        transl_cam_m: Tensor | None,
        intrinsics: Intrinsics | None,
    ) -> Tensor:
        """Points [B, P, 3] in camera axes from the root joint to [B, P, 2] ndc of the crop."""
        weak = project_weak(points_root_m, cam, self.scale0_per_m)
        if transl_cam_m is None or intrinsics is None:
            return weak
        points = points_root_m + transl_cam_m[:, None]
        points = torch.cat([points[..., :2], points[..., 2:].clamp(min=MIN_DEPTH_M)], dim=-1)
        seen_px = pinhole_camera.project(points, _usable_intrinsics(intrinsics))
        pinhole = ndc_from_px(seen_px, intrinsics.img_px)
        return torch.where(intrinsics.has_K[:, None, None], pinhole, weak)
