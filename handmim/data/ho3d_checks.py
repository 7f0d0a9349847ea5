"""Whether HO-3D's metas agree with themselves, the hand model and the conventions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.camera_checks import note_intrinsics, usable
from handmim.data.layouts import file_names
from handmim.data.provenance import LARGEST_RESIDUAL_M
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.conventions import OPENCV_FROM_OPENGL, project_px
from handmim.hand.label_checks import (
    SIZES_M,
    finite,
    note_bones,
    settle_axes,
    settle_order,
    settle_unit,
)
from handmim.hand.model import HandModel
from handmim.hand.skeleton import CANONICAL_FROM_HO3D, FINGERTIP_VERTS
from handmim.utils.findings import Notes, shown

Array = NDArray[np.float64]
Metas = Mapping[int, dict[str, Any]]

POSE = {"handPose": (48,), "handTrans": (3,), "handBeta": (10,), "handJoints3D": (21, 3)}
OPENGL = -1
IMAGE_SUFFIXES = (".png", ".jpg")  # v2 and v3, in the order of the official reader
USUAL_RESIDUAL_M = 0.003
BOX_SLACK = 0.2  # of the box's side, by which a wrist may be outside of it
SEEN = 0.8  # share of joints inside of the pictures


def image_of(root: Path, part: str, frame: str) -> Path | None:
    """The image file of a frame; None where there is none."""
    sequence, name = frame.split("/")
    folder = root / part / sequence / "rgb"
    paths = (folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def missing_files(root: Path, part: str, frames: Sequence[str]) -> list[str]:
    """Images and metas of listed frames that are not below the dataset's folder."""
    have: dict[tuple[str, str], set[str]] = {}
    missing = []
    for frame in frames:
        sequence, name = frame.split("/")
        for kind, suffixes in (("rgb", IMAGE_SUFFIXES), ("meta", (".pkl",))):
            if (sequence, kind) not in have:
                have[sequence, kind] = set(file_names(root / part / sequence / kind))
            if not any(f"{name}{suffix}" in have[sequence, kind] for suffix in suffixes):
                missing.append(f"{part}/{sequence}/{kind}/{name}")
    return missing


def check_training(
    notes: Notes,
    prefix: str,
    metas: Metas,
    frames: Mapping[int, str],
    model: HandModel | None,
    size_px: tuple[int, int],
    source: str,
) -> None:
    """Pose, joints and camera of training metas.

    Args:
        notes, prefix: where and how findings are noted.
        metas: by their place in the list.
        frames: names of those places.
        model: the hand; None leaves out what needs it.
        size_px: width and height of the pictures.
        source: how to get the original back.
    """
    nameless = [frames[i] for i, m in metas.items() if any(m.get(k) is None for k in POSE)]
    notes.judge(
        not nameless,
        f"{prefix}-none",
        f"{len(nameless)} of {len(metas)} listed frames looked at have no hand annotation"
        + (f" (None fields): {shown(nameless)}" if nameless else ""),
        f"they count as unlabelled; the genuine lists have none: {source}",
        bad="warning",
    )
    known = [m for m in metas.values() if all(m.get(k) is not None for k in POSE)]
    if not known:
        return
    labels = {key: stacked(known, key, shape) for key, shape in POSE.items()}
    where = "handJoints3D"
    kept = np.ones(len(known), bool)
    for key, values in labels.items():
        kept &= finite(notes, prefix, values, key)
    labels = {key: values[kept] for key, values in labels.items()}
    joints = settle_unit(notes, prefix, labels["handJoints3D"], where)
    joints = settle_order(notes, prefix, joints, "ho3d", where)
    note_bones(notes, prefix, joints, where)
    joints = settle_axes(notes, prefix, joints, OPENGL, where)
    if model is not None:
        with notes.guard(f"{prefix}-residual", source):
            _pose(notes, prefix, labels, joints, model, source)
    shown_metas = [m for m, k in zip(known, kept, strict=True) if k]
    K = cameras(notes, prefix, shown_metas, size_px, "train: camMat", source)
    if K is not None:
        px = project_px(joints @ OPENCV_FROM_OPENGL, K)
        inside = ((px >= 0) & (px <= size_px)).all(axis=2)
        notes.judge(
            float(inside.mean()) >= SEEN,
            f"{prefix}-projection",
            f"{inside.mean():.0%} of the joints fall into the pictures by camMat",
            f"camMat and {where} do not belong to these pictures: {source}",
        )


def check_meta(meta: dict[str, Any], is_training: bool) -> None:
    """Refuse a frame whose labels are none: `check_training` looks at some frames.

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
    joints = labels["handJoints3D"][0]
    size_m = float(np.linalg.norm(np.ptp(joints, axis=0)))
    if not SIZES_M[0] < size_m < SIZES_M[1] or (joints[:, 2] >= 0).any():
        raise ValueError("handJoints3D is no hand of metres before the camera (z < 0)")


def stacked(metas: list[dict[str, Any]], key: str, shape: tuple[int, ...]) -> Array:
    """[n, *shape] of one field.

    Raises: ValueError naming the field when a meta has another count of numbers.
    """
    rows = [np.asarray(meta[key], np.float64).ravel() for meta in metas]
    sizes = {len(row) for row in rows}
    if sizes != {int(np.prod(shape))}:
        raise ValueError(f"{key} holds {sorted(sizes)} numbers, wanted {int(np.prod(shape))}")
    return np.stack(rows).reshape(-1, *shape)


def _pose(
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
    verts = mesh.verts_m.double().numpy()
    tips = verts[:, list(FINGERTIP_VERTS["ho3d"])]
    posed = np.concatenate([mesh.chain_joints_m.double().numpy(), tips], axis=1)
    posed = posed[:, list(CANONICAL_FROM_HO3D)]
    if np.median(posed[..., 2]) > 0:  # told of the joints already
        posed = posed @ OPENCV_FROM_OPENGL
    shift = (joints_m - posed).mean(axis=1, keepdims=True)
    residuals_m = np.linalg.norm(posed + shift - joints_m, axis=2).mean(axis=1)
    residual_m = float(np.median(residuals_m))
    good = residual_m <= LARGEST_RESIDUAL_M
    notes.judge(
        residual_m <= USUAL_RESIDUAL_M,
        f"{prefix}-residual",
        f"posing {model.name} by handPose and handBeta misses the given joints by "
        f"{residual_m * 1e3:.2f} mm (median of {len(posed)}, worst {residuals_m.max() * 1e3:.2f})",
        f"hand=mano hand.path=MANO_RIGHT.pkl; if that is chosen, {source}",
        bad="warning" if good else "error",
    )
    if good and not notes.failed(f"{prefix}-unit"):
        off_m = float(np.median(np.linalg.norm(shift, axis=2)))
        notes.judge(
            off_m <= LARGEST_RESIDUAL_M,
            f"{prefix}-placement",
            f"hands placed by handTrans are {off_m * 1e3:.2f} mm off the given joints (median)",
            f"handTrans is added to MANO's vertices, it is not the wrist's place: {source}",
        )


def cameras(
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
    """Boxes, wrists and cameras that are given with the evaluation frames.

    Args:
        notes, prefix: where and how findings are noted.
        metas: by their place in the list.
        size_px: width and height of the pictures.
        source: how to get the original back.
    """
    given = [m for m in metas.values() if m.get("handBoundingBox") is not None]
    notes.judge(
        len(given) == len(metas),
        f"{prefix}-box",
        f"{len(given)} of {len(metas)} evaluation frames looked at have a handBoundingBox",
        f"without it the whole picture is cropped: {source}",
    )
    if not given:
        return
    K = cameras(notes, prefix, given, size_px, "evaluation: camMat", source)
    boxes = stacked(given, "handBoundingBox", (2, 2))
    turned = (boxes[:, 1] <= boxes[:, 0]).any(axis=1)
    outside = ((boxes < -1) | (boxes > np.array(size_px) + 1)).any(axis=(1, 2))
    notes.judge(
        not (turned | outside).any(),
        f"{prefix}-box",
        f"{outside.sum()} of {len(given)} boxes reach out of the picture, {turned.sum()} are "
        "turned around",
        f"handBoundingBox is x0, y0, x1, y1 in pixels: {source}",
        bad="error" if turned.any() else "warning",
    )
    if K is None or turned.any() or any(m.get("handJoints3D") is None for m in given):
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
