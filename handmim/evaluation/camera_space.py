"""Predictions of a whole set as hands in front of the camera, which is what benchmarks take."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from handmim.data.augment import HandAugment
from handmim.evaluation.scoring import Predictor, predictions
from handmim.evaluation.tta import TurnedViews
from handmim.geometry.camera import px_from_ndc, solve_translation
from handmim.hand.conventions import MIRROR
from handmim.losses.joints import JointEstimate
from handmim.tasks.prediction_images import draw_predictions
from handmim.types import HandBatch, HandSample, HandState
from handmim.utils.timer import Timer

log = logging.getLogger(__name__)

PLACEMENTS = ("predicted", "given_wrist")


class CameraHands(NamedTuple):
    """Predictions of a whole set, OpenCV camera, canonical joint order."""

    joints_cam_m: NDArray[np.float64]  # [n, 21, 3]
    verts_cam_m: NDArray[np.float64]  # [n, V, 3]
    sheet: NDArray[np.uint8] | None  # pictures of the first samples


def predicted_place(state: JointEstimate, K_crop_px: Tensor, img_px: int) -> Tensor:
    """Where the root joint stands: as the estimate says, or else by its own projection and K.

    Args:
        state: root-relative estimate and where its joints are seen.
        K_crop_px: [B, 3, 3] of the model's crops.
        img_px: their side.
    Returns: [B, 3] metres, OpenCV camera, float64.
    """
    seen_px = px_from_ndc(state.joints_crop_ndc.double(), img_px)
    transl = solve_translation(state.joints_root_m.double(), seen_px, K_crop_px)
    said, is_metric = (getattr(state, name, None) for name in ("transl_cam_m", "is_metric"))
    if said is None or is_metric is None:
        return transl
    return torch.where(is_metric[:, None], said.double(), transl)


def place(state: HandState, batch: HandBatch, placement: str) -> tuple[Tensor, Tensor]:
    """Joints and vertices in the camera frame of the picture.

    Args:
        state: root-relative estimate and where its joints are seen.
        batch: upright evaluation crops; left hands are mirrored back.
        placement: "predicted" takes the place that the estimate says, or else solves it from the
            estimate's own projection and K; "given_wrist" takes the labelled wrist, as HO-3D's
            evaluation provides it.
    Returns: [B, 21, 3] and [B, V, 3] metres, OpenCV camera, float64.
    Raises: ValueError where K, or the wrist, is not known.
    """
    joints, verts = state.joints_root_m.double(), state.verts_root_m.double()
    if placement == "given_wrist":
        if not bool(batch.joints_valid[:, 0].all()):
            raise ValueError(
                "placement=given_wrist needs the wrist of every sample, and this set has samples "
                "without (data.placement=predicted)"
            )
        transl = batch.joints_cam_m[:, 0].double() - joints[:, 0]
    else:
        if not bool(batch.has_K.all()):
            raise ValueError(
                "hands can be placed before the camera only where K is known; this set has samples "
                "without (data)"
            )
        transl = predicted_place(state, batch.K_crop_px, batch.image.shape[-1])
    back = torch.where(
        batch.was_left[:, None, None],
        torch.from_numpy(MIRROR).to(joints),
        torch.eye(3, dtype=joints.dtype, device=joints.device),
    )
    return (joints + transl[:, None]) @ back, (verts + transl[:, None]) @ back


@torch.no_grad()
def predict_camera_hands(
    predict: Predictor,
    dataset: Dataset[HandSample],
    augment: HandAugment,
    device: torch.device,
    batch_size: int = 64,
    *,
    placement: str = "predicted",
    num_pictures: int = 0,
    faces: NDArray[np.int32] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    num_workers: int = 0,
    tta: TurnedViews | None = None,
    stopwatch: Timer | None = None,
) -> CameraHands:
    """Joints and vertices of every sample in order.

    Args:
        predict: augmented batch -> estimate in the samples' joint rule.
        dataset: crops with intrinsics.
        augment: its evaluation crop is used.
        device: where `predict` runs.
        batch_size: samples at a time.
        placement: "predicted" or "given_wrist", see `place`.
        num_pictures: samples drawn beside their truth.
        faces: of the hand model, for the pictures.
        autocast: precision of `predict`.
        num_workers: loader processes.
        tta: several looks at every picture; None looks once.
        stopwatch: times the predictions.
    Raises: ValueError for another placement, or samples that lack what it needs.
    """
    if placement not in PLACEMENTS:
        raise ValueError(
            f"placement must be one of {PLACEMENTS}, got {placement!r} (data.placement)"
        )
    total = len(dataset)  # type: ignore[arg-type]
    joints, verts, sheet = [], [], None
    how = (augment, device, batch_size, autocast, num_workers, tta, stopwatch)
    for batch, state in predictions(predict, dataset, *how):
        if sheet is None and num_pictures and faces is not None:
            sheet = draw_predictions(batch, state, faces, num_pictures)
        placed = place(state, batch, placement)
        joints.append(placed[0].cpu().numpy())
        verts.append(placed[1].cpu().numpy())
        done = sum(map(len, joints))
        if done % (20 * batch_size) < batch_size:
            log.info("predicted %d of %d", done, total)
    return CameraHands(np.concatenate(joints), np.concatenate(verts), sheet)
