"""Test-time augmentation: estimates of rotated and scaled crops, carried back and averaged."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from handmim.geometry.crop import similarity, transform_points
from handmim.geometry.rotation import chordal_mean, rotation_about_z
from handmim.tasks.regression import Estimate

AnyEstimate = TypeVar("AnyEstimate", bound=Estimate)


class RotatedViews:
    """Rotated and scaled evaluation crops of every image, every angle with every scale.

    All crops have the centre of the plain one.

    Args:
        angles_deg: in-plane rotations of the crop.
        scales: its side relative to the plain evaluation crop.
    Raises: ValueError for no views, or scales that are not positive.
    """

    def __init__(self, *, angles_deg: Sequence[float], scales: Sequence[float] = (1.0,)) -> None:
        if not angles_deg or not scales or min(scales) <= 0:
            raise ValueError(
                "at least one angle and scale, scales > 0, are required, got "
                f"angles_deg={angles_deg}, scales={scales}"
            )
        self.views = [(math.radians(a), float(s)) for s in scales for a in angles_deg]


class CropTransform(NamedTuple):
    """How a plain crop follows from a rotated one that is `scale` times as large."""

    R_plain_from_crop: Tensor  # [3, 3] of the camera's axes, about the optical axis
    plain_from_crop: Tensor  # [2, 3] crop ndc -> plain crop's ndc
    log_scale: float

    @classmethod
    def of(cls, angle_rad: float, scale: float) -> "CropTransform":
        """The transform of a crop of `HandAugment.evaluate_at`."""
        angle = torch.tensor(angle_rad)
        plain_from_crop = similarity(torch.full_like(angle, scale), angle, angle.new_zeros(2))
        return cls(rotation_about_z(angle), plain_from_crop, math.log(scale))


def _rotated(points: Tensor, to_plain: CropTransform) -> Tensor:
    return points @ to_plain.R_plain_from_crop.to(points).T


def _moved(points_ndc: Tensor, to_plain: CropTransform) -> Tensor:
    return transform_points(to_plain.plain_from_crop.to(points_ndc), points_ndc)


def _rotated_pose(rotmats: Tensor, to_plain: CropTransform) -> Tensor:
    wrist = to_plain.R_plain_from_crop.to(rotmats) @ rotmats[:, :1]
    return torch.cat([wrist, rotmats[:, 1:]], dim=1)


def _moved_camera(cam: Tensor, to_plain: CropTransform) -> Tensor:
    # A crop twice as large shows the hand at half the size: s grows by its scale.
    shift_m = cam[:, 1:] @ to_plain.R_plain_from_crop[:2, :2].to(cam).T
    return torch.cat([cam[:, :1] + to_plain.log_scale, shift_m], dim=1)


def _unchanged(value: Tensor, to_plain: CropTransform) -> Tensor:
    return value


def _mean(values: Tensor) -> Tensor:
    return values.mean(dim=0)


def _all(values: Tensor) -> Tensor:
    return values.all(dim=0)


class Rule(NamedTuple):
    """How one field of an estimate is carried back and averaged."""

    back: Callable[[Tensor, CropTransform], Tensor]
    mean: Callable[[Tensor], Tensor] = _mean  # [n, B, ...] of n crops -> [B, ...]


RULES = {
    "rotmats": Rule(_rotated_pose, chordal_mean),
    "betas": Rule(_unchanged),
    "cam": Rule(_moved_camera),
    "verts_root_m": Rule(_rotated),
    "joints_root_m": Rule(_rotated),
    "verts_crop_ndc": Rule(_moved),
    "joints_crop_ndc": Rule(_moved),
    "transl_cam_m": Rule(_rotated),
    "is_metric": Rule(_unchanged, _all),
}


def _fields_of(estimate: Any) -> list[str]:
    """Names of the fields that hold something."""
    unknown = sorted(set(estimate._fields) - set(RULES))
    if unknown:
        raise ValueError(
            f"{type(estimate).__name__} has {unknown}, which no rule carries back from a rotated "
            f"crop; known are {sorted(RULES)} (handmim.evaluation.tta.RULES, tta=none)"
        )
    return [name for name in estimate._fields if getattr(estimate, name) is not None]


def carried_back(estimate: AnyEstimate, to_plain: CropTransform) -> AnyEstimate:
    """The estimate of a rotated crop in the frame of the plain one.

    Args:
        estimate: NamedTuple whose fields are among `RULES`.
        to_plain: on any device.
    Raises: ValueError for a field without a rule.
    """
    plain: Any = estimate
    fields = {name: RULES[name].back(getattr(plain, name), to_plain) for name in _fields_of(plain)}
    back: AnyEstimate = plain._replace(**fields)
    return back


def mean_of(estimates: Sequence[AnyEstimate]) -> AnyEstimate:
    """Mean of several estimates of the same crops: rotations by their chordal mean, everything else
    by its arithmetic one.

    Points are averaged directly, so the mean mesh is not exactly the one that the mean parameters
    pose.

    Args:
        estimates: at least one; a single one is returned unchanged.
    """
    first: Any = estimates[0]
    if len(estimates) == 1:
        return estimates[0]
    stacked = {n: torch.stack([getattr(e, n) for e in estimates]) for n in _fields_of(first)}
    mean: AnyEstimate = first._replace(**{n: RULES[n].mean(v) for n, v in stacked.items()})
    return mean
