"""Whether the labels of FreiHAND and HO-3D agree with themselves, a hand model and conventions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.label_checks import (
    METRES,
    OPENCV,
    OPENGL,
    OTHER_HAND,
    are_hands,
    finite,
    note_cameras,
    note_posing,
    settle_axes,
    settle_joints,
    settle_unit,
    usable,
)
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.conventions import OPENCV_FROM_OPENGL, freihand_hand, project_px, regressed_joints
from handmim.hand.model import HandLayer, HandModel
from handmim.hand.skeleton import CANONICAL_FROM_HO3D, FINGERTIP_VERTS, ROOT_JOINT
from handmim.utils.findings import FEW_WRONG, Level, Notes, level_of

Array = NDArray[np.float64]
Labels = Mapping[str, Array]
Metas = Mapping[str, dict[str, Any]]  # by frame

SOURCE = "unpack FreiHAND_pub_v2.zip again"
LARGEST = 1e6  # of a label that is no vertex
# Version 2's own vertices are 0.6 mm off their vectors in the mean, up to 6.
USUAL_M = {"freihand": 0.002, "ho3d": 0.003}
USUAL_JOINTS_M, LARGEST_JOINTS_M = 0.001, 0.005  # joints regressed from vertices, off the given
LARGEST_SCALE_ERROR = 0.02  # relative
POSE = {"handPose": (48,), "handTrans": (3,), "handBeta": (10,), "handJoints3D": (21, 3)}
BOX_SLACK = 0.2  # of the box's side, by which a wrist may be outside of it
SEEN = 0.8  # share of joints inside of the images
# What single samples must be: by field, which of [n, ...] are, and what the others have.
NO_CAMERA, NO_HAND = "no intrinsics of a camera", "no hand of metres before the camera"
POSSIBLE: dict[str, tuple[Callable[[Array], NDArray[np.bool_]], str]] = {
    "K": (usable, NO_CAMERA),
    "mano": (lambda vectors: vectors[:, 60] > 0, "no scale above 0 as number 60"),
    "xyz": (partial(are_hands, sign_z=OPENCV), NO_HAND),
    "camMat": (usable, NO_CAMERA),
    "handJoints3D": (partial(are_hands, sign_z=OPENGL), f"{NO_HAND} (z < 0)"),
}


def check_freihand_labels(
    notes: Notes,
    part: str,
    raw: Labels,
    model: HandModel | None,
    size_px: tuple[int, int] | None,
    fall_on_masks: Callable[[NDArray[np.bool_], Labels], bool] | None = None,
) -> None:
    """Note what is wrong with FreiHAND's labels of some samples; a wrong K is noted once.

    `raw` has [n, ...] by name of the list. No model leaves out what needs the hand, no size of the
    images (width, height) leaves K unchecked; `fall_on_masks` compares joints with masks.
    """
    where = {name: f"{part}_{name}.json" for name in raw}
    is_finite = finite(notes, {where[name]: values for name, values in raw.items()})
    labels = {name: values[is_finite] for name, values in raw.items()}
    with notes.guard("xyz"):
        if "xyz" in labels:
            xyz = labels.pop("xyz")
            labels["xyz"] = settle_joints(notes, xyz, "canonical", OPENCV, where["xyz"])
    with notes.guard("verts"):
        if "verts" in labels:
            verts = settle_unit(notes, labels.pop("verts"), where["verts"])
            labels["verts"] = settle_axes(notes, verts, OPENCV, where["verts"])
    if "scale" in labels and "xyz" in labels:
        bone_m = labels["xyz"][:, ROOT_JOINT] - labels["xyz"][:, ROOT_JOINT + 1]
        ratio = labels["scale"] / np.linalg.norm(bone_m, axis=1)
        middle = float(np.median(ratio))
        unit = next((u for u, m in METRES.items() if abs(middle * m - 1) < 0.1), "m")
        if unit != "m":
            fix = f"metres are required: multiply {where['scale']} by {METRES[unit]:g}, or {SOURCE}"
            notes.error("unit", f"{where['scale']} is in {unit}", fix)
        off = float(np.quantile(np.abs(ratio * METRES[unit] - 1), 0.9))
        text = f"{where['scale']} is within {off:.1%} of the length from joint 9 to 10 in nine of "
        notes.judge(off <= LARGEST_SCALE_ERROR, "scale", f"{text}ten samples")
    trusts_K = "K" in labels
    if trusts_K and size_px is not None:
        trusts_K = note_cameras(notes, labels["K"], size_px, where["K"])
    if trusts_K and "xyz" in labels and fall_on_masks is not None:
        with notes.guard("mask"):
            trusts_K = fall_on_masks(is_finite, labels)
    if model is not None and "verts" in labels:
        with notes.guard("residual"):
            _note_freihand_pose(notes, part, labels, model, trusts_K)


def _note_freihand_pose(
    notes: Notes, part: str, labels: Labels, model: HandModel, trusts_K: bool
) -> None:
    """Posed hands against the vertices, and joints regressed from vertices against the given."""
    verts, off_m, tips = labels["verts"], np.inf, FINGERTIP_VERTS["freihand"]
    if "xyz" in labels:
        error = regressed_joints(verts, model.arrays.J_regressor, tips) - labels["xyz"]
        off_m = float(np.median(np.linalg.norm(error, axis=2).mean(axis=1)))
    if "mano" in labels and "K" in labels:
        pairs = zip(labels["mano"], labels["K"], strict=True)
        hands = [freihand_hand(vector, K, model.arrays.hands_mean) for vector, K in pairs]
        rotmats, betas, root_m = (np.stack(values) for values in zip(*hands, strict=True))
        posed, _ = _posed(model, rotmats, betas)
        joints = regressed_joints(posed, model.arrays.J_regressor, tips)
        posed = posed + (root_m - joints[:, ROOT_JOINT])[:, None]
        posing = f"{part}: posing {model.name} by the MANO vectors misses the given vertices"
        fix = f"{OTHER_HAND}{SOURCE}; MANO v1.2 and FreiHAND version 2 give below 2 mm"
        if off_m <= USUAL_JOINTS_M:
            fix = f"vertices and joints agree, {part}_mano.json is of other samples or another "
            fix += f"version: {SOURCE}"
        placed = f"{part}: vertices placed by root, scale and K" if trusts_K else ""
        if not note_posing(notes, posed, verts, posing, USUAL_M["freihand"], fix, placed):
            return  # joints of another hand's regressor have no meaning
    if "xyz" in labels:
        text = f"{part}: joints regressed from the vertices are {off_m * 1e3:.2f} mm off the given "
        text += f"ones (median of {len(verts)})"
        fix = f"{part}_xyz.json and {part}_verts.json do not belong together, or the hand model is "
        fix += f"not theirs: {OTHER_HAND}{SOURCE}"
        bad: Level = "error" if off_m > LARGEST_JOINTS_M else "warning"
        notes.judge(off_m <= USUAL_JOINTS_M, "joints", text, fix, bad=bad)


def _posed(
    hand: HandLayer, rotmats: Array, betas: Array, transl_m: Array | None = None
) -> tuple[Array, Array]:
    """Vertices [n, V, 3] and joints of the kinematic chain [n, 16, 3] of posed hands."""
    with torch.no_grad():
        pose = [torch.from_numpy(x).float() for x in (rotmats, betas, transl_m) if x is not None]
        mesh = hand(*pose)
    return mesh.verts_m.double().numpy(), mesh.chain_joints_m.double().numpy()


def check_every_sample(
    notes: Notes,
    part: str,
    labels: Mapping[str, NDArray[np.floating]],
    size_px: tuple[int, int] | None,
) -> None:
    """Note FreiHAND samples without a possible camera, hand or position, of all samples, for images
    of (width, height); a fault of most samples has another name in `check_freihand_labels`."""
    good: dict[str, NDArray[np.bool_]] = {}
    for name, values in labels.items():
        num, where = len(values), f"samples of {part}_{name}.json have"
        is_number = np.asarray((np.abs(values).reshape(num, -1) <= LARGEST).all(axis=1))
        odd = np.flatnonzero(~is_number).tolist()
        notes.count(odd, num, "finite", f"{where} NaN or numbers above {LARGEST:.0e}")
        is_possible, what = POSSIBLE[name]
        good[name] = is_possible(values.astype(np.float64)) | ~is_number
        odd = np.flatnonzero(~good[name]).tolist()
        if len(odd) < num / 2:
            bad = level_of(len(odd), num, 0.0 if name == "K" else FEW_WRONG)
            notes.count(odd, num, "samples", f"{where} {what}", bad=bad)
    if size_px is not None and "xyz" in labels and good["K"].all() and not notes.failed("finite"):
        xyz = np.where(good["xyz"][:, None, None], labels["xyz"], 1.0).astype(np.float64)
        off = np.abs(project_px(xyz, labels["K"].astype(np.float64)) - np.array(size_px) / 2)
        is_outside = good["xyz"] & np.all((off > size_px).any(axis=2), axis=1)
        odd, num = np.flatnonzero(is_outside).tolist(), len(xyz)
        text = f"samples of {part}_xyz.json and {part}_K.json have all joints far outside of their "
        notes.count(odd, num, "samples", f"{text}image", bad=level_of(len(odd), num))


def check_ho3d_training(
    notes: Notes, metas: Metas, model: HandModel | None, size_px: tuple[int, int]
) -> None:
    """Note what is wrong with pose, joints and camera of HO-3D's training metas, for images of
    (width, height); no model leaves out what needs the hand."""
    nameless = [frame for frame, meta in metas.items() if not has_pose(meta)]
    text = "checked frames have no hand annotation (None fields)"
    fix = f"they count as unlabelled; the genuine lists have none: {notes.fix}"
    notes.count(nameless, len(metas), "none", text, fix, "warning")
    known = [m for m in metas.values() if has_pose(m)]
    if not known:
        return
    labels = {key: stacked(known, key, shape) for key, shape in POSE.items()}
    is_finite = finite(notes, labels)
    pose, transl, betas, joints = (values[is_finite] for values in labels.values())
    joints = settle_joints(notes, joints, "ho3d", OPENGL, "handJoints3D")
    if model is not None:
        with notes.guard("residual"):
            rotmats = np.asarray(rotvec_to_matrix(pose.reshape(-1, 16, 3)), np.float64)
            verts, chain = _posed(model, rotmats, betas, transl)
            posed = np.concatenate([chain, verts[:, list(FINGERTIP_VERTS["ho3d"])]], axis=1)
            posed = posed[:, list(CANONICAL_FROM_HO3D)]
            if np.median(posed[..., 2]) > 0:  # noted for the joints already
                posed = posed @ OPENCV_FROM_OPENGL
            posing = f"posing {model.name} by handPose and handBeta misses the given joints"
            placed = "" if notes.failed("unit") else "joints placed by handTrans"
            fix = OTHER_HAND + notes.fix
            note_posing(notes, posed, joints, posing, USUAL_M["ho3d"], fix, placed)
    good = [meta for meta, is_good in zip(known, is_finite, strict=True) if is_good]
    K = _cameras(notes, good, size_px, "train: camMat")
    if K is not None:
        px = project_px(joints @ OPENCV_FROM_OPENGL, K)
        inside = float(((px >= 0) & (px <= size_px)).all(axis=2).mean())
        text = f"{inside:.0%} of the joints fall into the images by camMat"
        notes.judge(inside >= SEEN, "projection", text)


def has_pose(meta: Mapping[str, Any]) -> bool:
    """Whether HO-3D annotated the hand of a frame."""
    return all(meta.get(key) is not None for key in POSE)


def check_meta(meta: dict[str, Any], is_training: bool) -> None:
    """Refuse a frame of HO-3D without possible labels. Raises: ValueError naming the field."""
    for key, shape in {"camMat": (3, 3), **POSE}.items():
        if meta.get(key) is None or (key in POSE and not (is_training and has_pose(meta))):
            continue
        values = stacked([meta], key, shape)
        if key in POSSIBLE and not POSSIBLE[key][0](values).all():
            raise ValueError(f"{key} is {POSSIBLE[key][1]}")
        if not np.isfinite(values).all():
            raise ValueError(f"{key} holds NaN or infinity")


def stacked(metas: list[dict[str, Any]], key: str, shape: tuple[int, ...]) -> Array:
    """[n, *shape] of one field. Raises: ValueError naming it for another count of numbers."""
    rows = [np.asarray(meta[key], np.float64).ravel() for meta in metas]
    sizes, size = {len(row) for row in rows}, int(np.prod(shape))
    if sizes != {size}:
        raise ValueError(f"{key} holds {sorted(sizes)} numbers, {size} are required")
    return np.stack(rows).reshape(-1, *shape)


def _cameras(
    notes: Notes, metas: list[dict[str, Any]], size_px: tuple[int, int], where: str
) -> Array | None:
    """[n, 3, 3] intrinsics where every meta has plausible ones."""
    missing = sum(meta.get("camMat") is None for meta in metas)
    if missing:
        notes.error("k", f"{missing} of {len(metas)} metas have no camMat")
        return None
    K = stacked(metas, "camMat", (3, 3))
    return K if note_cameras(notes, K, size_px, where) else None


def check_ho3d_evaluation(notes: Notes, metas: Metas, size_px: tuple[int, int]) -> None:
    """Note what is wrong with boxes, wrists and cameras of HO-3D's evaluation metas."""
    given = [m for m in metas.values() if m.get("handBoundingBox") is not None]
    text = f"{len(given)} of {len(metas)} checked evaluation frames have a handBoundingBox"
    fix = f"without it the whole image is cropped: {notes.fix}"
    notes.judge(len(given) == len(metas), "box", text, fix)
    if not given:
        return
    K = _cameras(notes, given, size_px, "evaluation: camMat")
    boxes = stacked(given, "handBoundingBox", (2, 2))
    exchanged = (boxes[:, 1] <= boxes[:, 0]).any(axis=1)
    outside = ((boxes < -1) | (boxes > np.array(size_px) + 1)).any(axis=(1, 2))
    text = f"{outside.sum()} of {len(given)} boxes reach out of the image, {exchanged.sum()} have "
    text += "their corners exchanged"
    fix = f"handBoundingBox is x0, y0, x1, y1 in pixels: {notes.fix}"
    bad: Level = "error" if exchanged.any() else "warning"
    notes.judge(not (exchanged | outside).any(), "box", text, fix, bad=bad)
    if K is None or exchanged.any() or any(m.get("handJoints3D") is None for m in given):
        return
    wrists = np.stack([np.asarray(m["handJoints3D"], np.float64).ravel()[:3] for m in given])
    wrists = settle_axes(notes, wrists[:, None], OPENGL, "the given wrist")
    px = project_px(wrists @ OPENCV_FROM_OPENGL, K)[:, 0]
    slack = BOX_SLACK * (boxes[:, 1] - boxes[:, 0])
    is_near = ((px >= boxes[:, 0] - slack) & (px <= boxes[:, 1] + slack)).all(axis=1)
    text = f"{is_near.mean():.0%} of the given wrists fall into or near their box by camMat"
    notes.judge(float(is_near.mean()) >= SEEN, "wrist", text)
