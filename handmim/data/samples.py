"""Square crops of hands and labelled samples of them, for every dataset.

A crop is a square about the centre of the hand's box; its side is `scale` times the longer side of
the box. Beyond the image it continues by reflection.
"""

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.hand.arrays import NUM_VERTS
from handmim.hand.conventions import mirror_intrinsics, mirror_points, mirror_rotmats
from handmim.hand.skeleton import CONVENTION_NAMES, NUM_JOINTS
from handmim.types import HandSample
from handmim.utils.arguments import one_of
from handmim.utils.files import UnreadableSample

Array = NDArray[np.floating]

MIN_SIDE_PX = 4.0
SHAPES: dict[str, tuple[int, ...]] = {
    "K_crop_px": (3, 3),
    "kp2d_crop_px": (NUM_JOINTS, 2),
    "joints_cam_m": (NUM_JOINTS, 3),
    "verts_cam_m": (NUM_VERTS, 3),
    "rotmats": (16, 3, 3),
    "betas": (10,),
}
FLAT_HAND = np.tile(np.eye(3), (16, 1, 1))


def box_of_points(points_px: Array) -> Array:
    """(x0, y0, x1, y1) of [P, 2] points."""
    return np.concatenate([points_px.min(axis=0), points_px.max(axis=0)])


def crop_map(box_px: Array, scale: float, crop_px: int) -> Array:
    """crop_from_img [2, 3], pixels to pixels on [0, W] x [0, H], of a box x0, y0, x1, y1."""
    box = np.asarray(box_px, np.float64)
    if not np.isfinite(box).all() or (box[2:] < box[:2]).any():
        raise ValueError(f"a hand's box must be x0 <= x1, y0 <= y1 in pixels, got {box.tolist()}")
    centre = (box[:2] + box[2:]) / 2
    side = max(float((box[2:] - box[:2]).max()) * scale, MIN_SIDE_PX)
    zoom = crop_px / side
    return np.column_stack([np.eye(2) * zoom, crop_px / 2 - zoom * centre])


def cut(image: NDArray[np.uint8], crop_from_img: Array, crop_px: int) -> NDArray[np.uint8]:
    """[crop_px, crop_px, C] crop of an image [H, W, C] by an upright map of `crop_map`."""
    zoom, offset = float(crop_from_img[0, 0]), np.array(crop_from_img[:, 2], np.float64)
    # Shrinking a whole large image for a small crop costs most: take its part first, where the
    # crop lies inside and nothing is reflected.
    size_px = np.array(image.shape[1::-1])
    margin = math.ceil(2 / min(zoom, 1.0))
    low = np.floor(-offset / zoom).astype(int) - margin
    high = np.ceil((crop_px - offset) / zoom).astype(int) + margin
    if (low >= 0).all() and (high <= size_px).all():
        image = image[low[1] : high[1], low[0] : high[0]]
        offset = offset + zoom * low
    if zoom < 1:  # warping interpolates between four pixels only: shrink by area before
        height, width = image.shape[:2]
        new = max(1, round(width * zoom)), max(1, round(height * zoom))
        image = cv2.resize(image, new, interpolation=cv2.INTER_AREA)
        # Whole pixels: the resized image may be a fraction of a pixel off the exact zoom.
        zooms = np.array([zoom * width / new[0], zoom * height / new[1]])
    else:
        zooms = np.array([zoom, zoom])
    # OpenCV's pixel centres lie half a pixel lower than ours.
    shift = offset + 0.5 * zooms - 0.5
    warp = np.column_stack([np.diag(zooms), shift])
    size = (crop_px, crop_px)
    return cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def carry_points(crop_from_img: Array, points_px: Array) -> Array:
    """[P, 2] image pixels to crop pixels."""
    return points_px @ crop_from_img[:, :2].T + crop_from_img[:, 2]


def carry_intrinsics(crop_from_img: Array, K_px: Array) -> Array:
    """K of the crop: [3, 3] -> [3, 3]."""
    return np.vstack([crop_from_img, [0.0, 0.0, 1.0]]) @ K_px


def hand_sample(
    image: NDArray[np.uint8],
    sample_id: str,
    *,
    is_right: bool = True,
    joint_convention: str = "model",
    K_crop_px: Array | None = None,
    kp2d_crop_px: Array | None = None,
    kp2d_valid: NDArray[np.bool_] | None = None,
    kp2d_conf: Array | None = None,
    joints_cam_m: Array | None = None,
    joints_valid: NDArray[np.bool_] | None = None,
    verts_cam_m: Array | None = None,
    rotmats: Array | None = None,
    betas: Array | None = None,
) -> HandSample:
    """A sample of the given labels, of shapes `SHAPES`; all others are zero with their flag off.

    Raises: ValueError for half of the MANO parameters, another shape, an unknown convention or
        confidences outside [0, 1]; UnreadableSample for labels that are not finite.
    """
    if (rotmats is None) != (betas is None):
        raise ValueError(f"{sample_id}: MANO parameters are rotations and betas, got one of them")
    one_of("joint_convention", joint_convention, CONVENTION_NAMES)

    def label(
        name: str, value: Array | None, valid: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        if value is None:
            return np.zeros(SHAPES[name], np.float32)
        if np.shape(value) != SHAPES[name]:
            raise ValueError(f"{sample_id}: {name} must be {SHAPES[name]}, got {np.shape(value)}")
        if valid is not None:
            value = np.where(np.asarray(valid, bool)[:, None], value, 0.0)
        num = np.count_nonzero(~np.isfinite(value))
        if num:
            raise UnreadableSample(sample_id, f"{name} has {num} values that are not finite")
        return np.asarray(value, np.float32)

    def flags(points: Array | None, valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        if points is None or valid is None:
            return np.full(NUM_JOINTS, points is not None)
        return np.asarray(valid, bool)

    kp2d_seen = flags(kp2d_crop_px, kp2d_valid)
    return HandSample(
        image=image,
        sample_id=sample_id,
        is_right=is_right,
        joint_convention=joint_convention,
        K_crop_px=label("K_crop_px", K_crop_px),
        has_K=K_crop_px is not None,
        kp2d_crop_px=label("kp2d_crop_px", kp2d_crop_px, kp2d_valid),
        kp2d_valid=kp2d_seen,
        kp2d_conf=_confidences(sample_id, kp2d_conf, kp2d_seen),
        joints_cam_m=label("joints_cam_m", joints_cam_m, joints_valid),
        joints_valid=flags(joints_cam_m, joints_valid),
        verts_cam_m=label("verts_cam_m", verts_cam_m),
        has_verts=verts_cam_m is not None,
        rotmats=label("rotmats", FLAT_HAND if rotmats is None else rotmats),
        betas=label("betas", betas),
        has_mano=rotmats is not None,
    )


def _confidences(
    sample_id: str, conf: Array | None, valid: NDArray[np.bool_]
) -> NDArray[np.float32]:
    if conf is None:
        return valid.astype(np.float32)
    if np.shape(conf) != (NUM_JOINTS,):
        raise ValueError(f"{sample_id}: kp2d_conf must be ({NUM_JOINTS},), got {np.shape(conf)}")
    known = np.where(valid, conf, 0.0)
    if not ((known >= 0) & (known <= 1)).all():
        got = f"got {known.min():g} to {known.max():g}"
        raise ValueError(f"{sample_id}: kp2d_conf must be in [0, 1], {got}")
    return known.astype(np.float32)


def crop_sample(
    image: NDArray[np.uint8],
    crop_from_img: Array,
    crop_px: int,
    sample_id: str,
    *,
    K_px: Array | None = None,
    kp2d_px: Array | None = None,
    **labels: Any,
) -> HandSample:
    """`hand_sample` of a crop, from labels in the whole image [H, W, 3]."""
    return hand_sample(
        cut(image, crop_from_img, crop_px),
        sample_id,
        K_crop_px=None if K_px is None else carry_intrinsics(crop_from_img, K_px),
        kp2d_crop_px=None if kp2d_px is None else carry_points(crop_from_img, kp2d_px),
        **labels,
    )


def mirror_sample(sample: HandSample) -> HandSample:
    """The mirrored image as one of the other hand: pixels, camera, points, rotations, side.
    Vertices keep their numbers: MANO's left and right meshes correspond, with faces reversed."""
    width = sample.image.shape[1]
    kp2d = sample.kp2d_crop_px.copy()
    kp2d[:, 0] = width - kp2d[:, 0]
    K = mirror_intrinsics(sample.K_crop_px, width) if sample.has_K else sample.K_crop_px
    return dataclasses.replace(
        sample,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        is_right=not sample.is_right,
        K_crop_px=K.astype(np.float32),
        kp2d_crop_px=kp2d,
        joints_cam_m=mirror_points(sample.joints_cam_m).astype(np.float32),
        verts_cam_m=mirror_points(sample.verts_cam_m).astype(np.float32),
        rotmats=mirror_rotmats(sample.rotmats).astype(np.float32),
    )
