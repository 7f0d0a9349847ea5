"""Square crops of hands and labelled samples of them, for every dataset.

A crop is a square about the centre of the hand's box, which is the box of its 21 joints in the
image wherever they are known; its side is `scale` (`CROP_SCALE` by default) times the longer side
of the box. Beyond the image it continues by reflection.
"""

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.hand.conventions import mirror_intrinsics, mirror_points, mirror_rotmats
from handmim.hand.io import NUM_VERTS
from handmim.hand.skeleton import CONVENTION_NAMES, NUM_JOINTS
from handmim.types import HandSample
from handmim.utils.arguments import one_of
from handmim.utils.files import UnreadableSample

Array = NDArray[np.floating]

MIN_SIDE_PX = 4.0
# The flag and the shape of each label; flags `*_valid` are of every joint.
LABELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "K_crop_px": ("has_K", (3, 3)),
    "kp2d_crop_px": ("kp2d_valid", (NUM_JOINTS, 2)),
    "joints_cam_m": ("joints_valid", (NUM_JOINTS, 3)),
    "verts_cam_m": ("has_verts", (NUM_VERTS, 3)),
    "rotmats": ("has_mano", (16, 3, 3)),
    "betas": ("has_mano", (10,)),
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


def whole_image(image: NDArray[np.uint8], scale: float, crop_px: int) -> Array:
    """`crop_map` of a whole image [H, W, C]."""
    height, width = image.shape[:2]
    return crop_map(np.array([0, 0, width, height]), scale, crop_px)


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


def hand_sample(
    image: NDArray[np.uint8],
    sample_id: str,
    *,
    is_right: bool = True,
    joint_convention: str = "model",
    kp2d_conf: Array | None = None,
    **labels: Any,
) -> HandSample:
    """A sample of labels by their names in `LABELS`, `kp2d_valid` and `joints_valid` [21] beside
    them; all others, and None, are zero with their flag off.

    Raises: ValueError for half of the MANO parameters, another shape, an unknown convention or
        confidences outside [0, 1]; UnreadableSample for labels that are not finite.
    """
    if (labels.get("rotmats") is None) != (labels.get("betas") is None):
        raise ValueError(f"{sample_id}: MANO parameters are rotations and betas, got one of them")
    one_of("joint_convention", joint_convention, CONVENTION_NAMES)
    if unknown := labels.keys() - {"kp2d_valid", "joints_valid", *LABELS}:
        raise TypeError(f"{sample_id}: there are no labels {sorted(unknown)}")
    fields: dict[str, Any] = {}
    for name, (flag, shape) in LABELS.items():
        value, valid = labels.get(name), labels.get(flag)
        known: Any = value is not None
        if flag.endswith("_valid"):
            per_joint = known and valid is not None
            known = np.asarray(valid, bool) if per_joint else np.full(NUM_JOINTS, known)
        if value is None:
            value = FLAT_HAND if name == "rotmats" else np.zeros(shape)
        elif np.shape(value) != shape:
            raise ValueError(f"{sample_id}: {name} must be {shape}, got {np.shape(value)}")
        elif flag.endswith("_valid"):
            value = np.where(known[:, None], value, 0.0)
        if num := np.count_nonzero(~np.isfinite(value)):
            raise UnreadableSample(sample_id, f"{name} has {num} values that are not finite")
        fields |= {name: np.asarray(value, np.float32), flag: known}
    conf = fields["kp2d_valid"].astype(np.float32)
    if kp2d_conf is not None:
        if np.shape(kp2d_conf) != conf.shape:
            shapes = f"must be {conf.shape}, got {np.shape(kp2d_conf)}"
            raise ValueError(f"{sample_id}: kp2d_conf {shapes}")
        conf = np.where(fields["kp2d_valid"], kp2d_conf, 0.0)
        if not ((conf >= 0) & (conf <= 1)).all():
            got = f"got {conf.min():g} to {conf.max():g}"
            raise ValueError(f"{sample_id}: kp2d_conf must be in [0, 1], {got}")
    fields["kp2d_conf"] = conf.astype(np.float32)
    return HandSample(image, sample_id, is_right, joint_convention, **fields)


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
    A = crop_from_img
    if K_px is not None:
        labels["K_crop_px"] = np.vstack([A, [0.0, 0.0, 1.0]]) @ K_px
    if kp2d_px is not None:
        labels["kp2d_crop_px"] = kp2d_px @ A[:, :2].T + A[:, 2]
    return hand_sample(cut(image, A, crop_px), sample_id, **labels)


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
