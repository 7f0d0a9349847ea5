"""Building and mirroring labelled samples, whatever the dataset."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from handmim.hand.arrays import NUM_VERTS
from handmim.hand.conventions import mirror_intrinsics, mirror_points, mirror_rotmats
from handmim.hand.skeleton import CONVENTION_NAMES, NUM_JOINTS
from handmim.types import HandSample
from handmim.utils.files import UnreadableSample

Array = NDArray[np.floating]


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
    """A sample of whatever is labelled; everything else is zero with its flag off, whatever stood
    there.

    Args:
        image: [S, S, 3] crop.
        sample_id: name within its dataset.
        is_right: side of the hand.
        joint_convention: how the source's joints follow from a mesh.
        K_crop_px: [3, 3].
        kp2d_crop_px, joints_cam_m: [21, 2] and [21, 3].
        kp2d_valid, joints_valid: [21]; all joints when left out.
        kp2d_conf: [21] confidence in [0, 1] of the 2D joints; 1 when left out.
        verts_cam_m: [V, 3].
        rotmats, betas: [16, 3, 3] and [10], both or neither.
    Raises: ValueError for half of the MANO parameters, an unknown rule or confidences outside
        [0, 1]; UnreadableSample for labels that are not finite.
    """
    if (rotmats is None) != (betas is None):
        raise ValueError(f"{sample_id}: MANO parameters are rotations and betas, got one of them")
    if joint_convention not in CONVENTION_NAMES:
        raise ValueError(
            f"{sample_id}: joint_convention {joint_convention!r} is none of {CONVENTION_NAMES}"
        )

    def label(name: str, value: Array | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if value is None:
            return np.zeros(shape, np.float32)
        if np.shape(value) != shape:
            raise ValueError(f"{sample_id}: {name} must be {shape}, got {np.shape(value)}")
        if not np.isfinite(value).all():
            num = np.count_nonzero(~np.isfinite(value))
            raise UnreadableSample(sample_id, f"{name} has {num} values that are not finite")
        return np.asarray(value, np.float32)

    def seen(points: Array | None, valid: NDArray[np.bool_] | None) -> Array | None:
        if points is None or valid is None:
            return points
        return np.where(np.asarray(valid, bool)[:, None], points, 0.0)

    def flags(points: Array | None, valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        if points is None:
            return np.zeros(NUM_JOINTS, bool)
        return np.ones(NUM_JOINTS, bool) if valid is None else np.asarray(valid, bool)

    kp2d_seen = flags(kp2d_crop_px, kp2d_valid)
    return HandSample(
        image=image,
        sample_id=sample_id,
        is_right=is_right,
        joint_convention=joint_convention,
        K_crop_px=label("K_crop_px", K_crop_px, (3, 3)),
        has_K=K_crop_px is not None,
        kp2d_crop_px=label("kp2d_crop_px", seen(kp2d_crop_px, kp2d_valid), (NUM_JOINTS, 2)),
        kp2d_valid=kp2d_seen,
        kp2d_conf=_confidences(sample_id, kp2d_conf, kp2d_seen),
        joints_cam_m=label("joints_cam_m", seen(joints_cam_m, joints_valid), (NUM_JOINTS, 3)),
        joints_valid=flags(joints_cam_m, joints_valid),
        verts_cam_m=label("verts_cam_m", verts_cam_m, (NUM_VERTS, 3)),
        has_verts=verts_cam_m is not None,
        rotmats=np.tile(np.eye(3, dtype=np.float32), (16, 1, 1))
        if rotmats is None
        else label("rotmats", rotmats, (16, 3, 3)),
        betas=label("betas", betas, (10,)),
        has_mano=rotmats is not None,
    )


def _confidences(
    sample_id: str, conf: Array | None, valid: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """[21] as given, 1 where nothing is, 0 for joints that are not labelled."""
    if conf is None:
        return valid.astype(np.float32)
    if np.shape(conf) != (NUM_JOINTS,):
        raise ValueError(f"{sample_id}: kp2d_conf must be ({NUM_JOINTS},), got {np.shape(conf)}")
    known = np.where(valid, conf, 0.0)
    if not ((known >= 0) & (known <= 1)).all():
        raise ValueError(
            f"{sample_id}: kp2d_conf must be in [0, 1], got {known.min():g} to {known.max():g}"
        )
    return known.astype(np.float32)


def mirror_sample(sample: HandSample) -> HandSample:
    """The same picture of the other hand: pixels, camera, points, rotations and side together.

    Its own inverse. Vertices keep their numbers: MANO's left and right meshes correspond, with
    faces turned over.
    """
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
