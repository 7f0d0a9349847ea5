"""Whether HO-3D's metas agree with themselves, the hand model and the conventions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.label_checks import (
    OPENGL,
    OTHER_HAND,
    are_hands,
    centred_error_m,
    note_intrinsics,
    note_placement,
    note_residual,
    settle_joints,
    usable,
)
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.conventions import OPENCV_FROM_OPENGL, project_px
from handmim.hand.label_checks import finite, settle_axes
from handmim.hand.model import HandModel
from handmim.hand.skeleton import CANONICAL_FROM_HO3D, FINGERTIP_VERTS
from handmim.utils.findings import Notes, shown

Array = NDArray[np.float64]
Metas = Mapping[int, dict[str, Any]]

POSE = {"handPose": (48,), "handTrans": (3,), "handBeta": (10,), "handJoints3D": (21, 3)}
USUAL_RESIDUAL_M = 0.003
BOX_SLACK = 0.2  # of the box's side, by which a wrist may be outside of it
SEEN = 0.8  # share of joints inside of the images


def check_training(
    notes: Notes,
    prefix: str,
    metas: Metas,
    frames: Mapping[int, str],
    model: HandModel | None,
    size_px: tuple[int, int],
    source: str,
) -> None:
    """Note what is wrong with pose, joints and camera of HO-3D's training metas.

    Args:
        notes, prefix, source: where and how findings are noted, and how to get the original back.
        metas, frames: contents and names by their index in the list.
        model: the hand; None leaves out what needs it.
        size_px: width and height of the images.
    """
    nameless = [frames[i] for i, m in metas.items() if any(m.get(k) is None for k in POSE)]
    notes.judge(
        not nameless,
        f"{prefix}-none",
        f"{len(nameless)} of {len(metas)} checked frames have no hand annotation"
        + (f" (None fields): {shown(nameless)}" if nameless else ""),
        f"they count as unlabelled; the genuine lists have none: {source}",
        bad="warning",
    )
    known = [m for m in metas.values() if all(m.get(k) is not None for k in POSE)]
    if not known:
        return
    labels = {key: stacked(known, key, shape) for key, shape in POSE.items()}
    where = "handJoints3D"
    is_finite = np.ones(len(known), bool)
    for key, values in labels.items():
        is_finite &= finite(notes, prefix, values, key)
    labels = {key: values[is_finite] for key, values in labels.items()}
    joints = settle_joints(notes, prefix, labels[where], "ho3d", OPENGL, where)
    if model is not None:
        with notes.guard(f"{prefix}-residual", source):
            _note_poses(notes, prefix, labels, joints, model, source)
    finite_metas = [meta for meta, good in zip(known, is_finite, strict=True) if good]
    K = _cameras(notes, prefix, finite_metas, size_px, "train: camMat", source)
    if K is not None:
        px = project_px(joints @ OPENCV_FROM_OPENGL, K)
        inside = float(((px >= 0) & (px <= size_px)).all(axis=2).mean())
        text = f"{inside:.0%} of the joints fall into the images by camMat"
        fix = f"camMat and {where} do not belong to these images: {source}"
        notes.judge(inside >= SEEN, f"{prefix}-projection", text, fix)


def check_meta(meta: dict[str, Any], is_training: bool) -> None:
    """Refuse a frame of HO-3D without possible labels.

    Raises: ValueError naming the field.
    """
    if meta.get("camMat") is not None and not usable(stacked([meta], "camMat", (3, 3))).all():
        raise ValueError("camMat is no intrinsics of a camera")
    if not is_training or any(meta.get(key) is None for key in POSE):
        return
    labels = {key: stacked([meta], key, shape) for key, shape in POSE.items()}
    for key, values in labels.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{key} holds NaN or infinity")
    if not are_hands(labels["handJoints3D"], OPENGL).all():
        raise ValueError("handJoints3D is no hand of metres before the camera (z < 0)")


def stacked(metas: list[dict[str, Any]], key: str, shape: tuple[int, ...]) -> Array:
    """[n, *shape] of one field.

    Raises: ValueError naming the field when a meta has another count of numbers.
    """
    rows = [np.asarray(meta[key], np.float64).ravel() for meta in metas]
    sizes, size = {len(row) for row in rows}, int(np.prod(shape))
    if sizes != {size}:
        raise ValueError(f"{key} holds {sorted(sizes)} numbers, {size} are required")
    return np.stack(rows).reshape(-1, *shape)


def _note_poses(
    notes: Notes,
    prefix: str,
    labels: Mapping[str, Array],
    joints_m: Array,
    model: HandModel,
    source: str,
) -> None:
    """Joints of the posed hand against the given ones, in the axes of the file."""
    rotmats = torch.from_numpy(rotvec_to_matrix(labels["handPose"].reshape(-1, 16, 3)))
    betas, transl = (torch.from_numpy(labels[k]) for k in ("handBeta", "handTrans"))
    with torch.no_grad():
        mesh = model(rotmats, betas, transl.to(torch.float32))
    tips = mesh.verts_m.double().numpy()[:, list(FINGERTIP_VERTS["ho3d"])]
    posed = np.concatenate([mesh.chain_joints_m.double().numpy(), tips], axis=1)
    posed = posed[:, list(CANONICAL_FROM_HO3D)]
    if np.median(posed[..., 2]) > 0:  # noted for the joints already
        posed = posed @ OPENCV_FROM_OPENGL
    residuals_m, shift = centred_error_m(posed, joints_m)
    posing = f"posing {model.name} by handPose and handBeta misses the given joints"
    fix = OTHER_HAND + source
    is_good = note_residual(notes, prefix, posing, residuals_m, USUAL_RESIDUAL_M, fix)
    if is_good and not notes.failed(f"{prefix}-unit"):
        fix = f"handTrans is added to MANO's vertices, it is not the wrist's position: {source}"
        off_m = np.linalg.norm(shift, axis=2)
        note_placement(notes, prefix, "joints placed by handTrans", off_m, fix)


def _cameras(
    notes: Notes,
    prefix: str,
    metas: list[dict[str, Any]],
    size_px: tuple[int, int],
    where: str,
    source: str,
) -> Array | None:
    """[n, 3, 3] intrinsics where every meta has plausible ones."""
    missing = sum(meta.get("camMat") is None for meta in metas)
    if missing:
        notes.error(f"{prefix}-k", f"{missing} of {len(metas)} metas have no camMat", source)
        return None
    K = stacked(metas, "camMat", (3, 3))
    return K if note_intrinsics(notes, prefix, K, size_px, where) else None


def check_evaluation(
    notes: Notes, prefix: str, metas: Metas, size_px: tuple[int, int], source: str
) -> None:
    """Note what is wrong with boxes, wrists and cameras of HO-3D's evaluation metas; arguments as
    of `check_training`."""
    given = [m for m in metas.values() if m.get("handBoundingBox") is not None]
    notes.judge(
        len(given) == len(metas),
        f"{prefix}-box",
        f"{len(given)} of {len(metas)} checked evaluation frames have a handBoundingBox",
        f"without it the whole image is cropped: {source}",
    )
    if not given:
        return
    K = _cameras(notes, prefix, given, size_px, "evaluation: camMat", source)
    boxes = stacked(given, "handBoundingBox", (2, 2))
    exchanged = (boxes[:, 1] <= boxes[:, 0]).any(axis=1)
    outside = ((boxes < -1) | (boxes > np.array(size_px) + 1)).any(axis=(1, 2))
    notes.judge(
        not (exchanged | outside).any(),
        f"{prefix}-box",
        f"{outside.sum()} of {len(given)} boxes reach out of the image, {exchanged.sum()} have "
        "their corners exchanged",
        f"handBoundingBox is x0, y0, x1, y1 in pixels: {source}",
        bad="error" if exchanged.any() else "warning",
    )
    if K is None or exchanged.any() or any(m.get("handJoints3D") is None for m in given):
        return
    wrists = np.stack([np.asarray(m["handJoints3D"], np.float64).ravel()[:3] for m in given])
    wrists = settle_axes(notes, prefix, wrists[:, None], OPENGL, "the given wrist")
    px = project_px(wrists @ OPENCV_FROM_OPENGL, K)[:, 0]
    slack = BOX_SLACK * (boxes[:, 1] - boxes[:, 0])
    within = ((px >= boxes[:, 0] - slack) & (px <= boxes[:, 1] + slack)).all(axis=1)
    notes.judge(
        float(within.mean()) >= SEEN,
        f"{prefix}-wrist",
        f"{within.mean():.0%} of the given wrists fall into or near their box by camMat",
        f"camMat, wrist and handBoundingBox do not belong together: {source}",
    )
