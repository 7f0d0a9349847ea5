"""Test-time augmentation: several turned and scaled crops of a picture, one mean answer."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from handmim.data.augment import HandAugment
from handmim.geometry.crop import similarity, transform_points
from handmim.geometry.rotation import chordal_mean, rotation_about_z
from handmim.tasks.regression import Estimate
from handmim.types import HandBatch

AnyEstimate = TypeVar("AnyEstimate", bound=Estimate)


class Turn(NamedTuple):
    """How a plain crop follows from one that is turned by an angle and `scale` times as large."""

    R_plain_from_crop: Tensor  # [3, 3] of the camera's axes, about the optical axis
    plain_from_crop: Tensor  # [2, 3] crop ndc -> plain crop's ndc
    log_scale: float

    @classmethod
    def of(cls, angle_rad: float, scale: float, device: torch.device) -> "Turn":
        """The turn of a crop of `HandAugment.evaluate_at`."""
        angle = torch.tensor(angle_rad, device=device)
        plain_from_crop = similarity(torch.full_like(angle, scale), angle, angle.new_zeros(2))
        return cls(rotation_about_z(angle), plain_from_crop, math.log(scale))


def _turned(points: Tensor, turn: Turn) -> Tensor:
    return points @ turn.R_plain_from_crop.to(points).T


def _moved(points_ndc: Tensor, turn: Turn) -> Tensor:
    return transform_points(turn.plain_from_crop.to(points_ndc), points_ndc)


def _turned_pose(rotmats: Tensor, turn: Turn) -> Tensor:
    first = turn.R_plain_from_crop.to(rotmats) @ rotmats[:, :1]
    return torch.cat([first, rotmats[:, 1:]], dim=1)


def _moved_camera(cam: Tensor, turn: Turn) -> Tensor:
    # A crop twice as large shows the hand at half the size: s grows by its scale.
    shift_m = cam[:, 1:] @ turn.R_plain_from_crop[:2, :2].to(cam).T
    return torch.cat([cam[:, :1] + turn.log_scale, shift_m], dim=1)


def _as_it_is(value: Tensor, turn: Turn) -> Tensor:
    return value


def _mean(values: Tensor) -> Tensor:
    return values.mean(dim=0)


def _all(values: Tensor) -> Tensor:
    return values.all(dim=0)


class Rule(NamedTuple):
    """What becomes of one field of an estimate."""

    back: Callable[[Tensor, Turn], Tensor]  # from the turned crop to the plain one
    mean: Callable[[Tensor], Tensor] = _mean  # [n, B, ...] of n crops -> [B, ...]


RULES = {
    "rotmats": Rule(_turned_pose, chordal_mean),
    "betas": Rule(_as_it_is),
    "cam": Rule(_moved_camera),
    "verts_root_m": Rule(_turned),
    "joints_root_m": Rule(_turned),
    "verts_crop_ndc": Rule(_moved),
    "joints_crop_ndc": Rule(_moved),
    "transl_cam_m": Rule(_turned),
    "is_metric": Rule(_as_it_is, _all),
}


def _told(estimate: Any) -> list[str]:
    """Names of the fields that say something."""
    unknown = sorted(set(estimate._fields) - set(RULES))
    if unknown:
        raise ValueError(
            f"{type(estimate).__name__} has {unknown}, and nothing says how they turn with the "
            f"crop; known are {sorted(RULES)} (handmim.evaluation.tta.RULES, tta=none)"
        )
    return [name for name in estimate._fields if getattr(estimate, name) is not None]


def carried_back(estimate: AnyEstimate, angle_rad: float, scale: float) -> AnyEstimate:
    """What is said of a turned crop, said of the plain one.

    Args:
        estimate: NamedTuple whose fields are among `RULES`.
        angle_rad, scale: of the crop, as `HandAugment.evaluate_at` takes them.
    Raises: ValueError for a field without a rule.
    """
    turn = Turn.of(angle_rad, scale, estimate.joints_root_m.device)
    plain: Any = estimate
    back: AnyEstimate = plain._replace(
        **{name: RULES[name].back(getattr(plain, name), turn) for name in _told(plain)}
    )
    return back


def mean_of(estimates: Sequence[AnyEstimate]) -> AnyEstimate:
    """Mean of several estimates of the same crops: rotations by their chordal mean, everything else
    by its arithmetic one.

    Points are averaged as they stand, so the mean mesh is not exactly the one that the mean
    parameters pose.

    Args:
        estimates: at least one; a single one is returned as it is.
    """
    first: Any = estimates[0]
    if len(estimates) == 1:
        return estimates[0]
    stacked = {name: torch.stack([getattr(e, name) for e in estimates]) for name in _told(first)}
    mean: AnyEstimate = first._replace(
        **{name: RULES[name].mean(values) for name, values in stacked.items()}
    )
    return mean


class TurnedViews:
    """The mean answer over turned and scaled evaluation crops of every picture.

    Every angle is taken with every scale. All crops have the centre of the plain one.

    Args:
        angles_deg: in-plane rotations of the crop.
        scales: its side relative to the plain evaluation crop.
    Raises: ValueError for no views, or scales that are not positive.
    """

    def __init__(self, *, angles_deg: Sequence[float], scales: Sequence[float] = (1.0,)) -> None:
        if not angles_deg or not scales or min(scales) <= 0:
            raise ValueError(
                f"need at least one angle and scale, scales > 0, got angles_deg={angles_deg}, "
                f"scales={scales} (tta.views)"
            )
        self.views = [(math.radians(a), float(s)) for s in scales for a in angles_deg]

    def __call__(
        self,
        predict: Callable[[HandBatch], AnyEstimate],
        stored: HandBatch,
        augment: HandAugment,
    ) -> AnyEstimate:
        """The mean estimate, in the frame of the plain evaluation crop.

        Args:
            predict: augmented batch -> estimate.
            stored: the stored crops, on the device.
            augment: cuts the views.
        """
        answers = (predict(augment.evaluate_at(stored, *view)) for view in self.views)
        pairs = zip(answers, self.views, strict=True)
        return mean_of([carried_back(answer, *view) for answer, view in pairs])
