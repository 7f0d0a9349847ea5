"""Whether FreiHAND's labels agree with each other, the hand model and the conventions."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.label_checks import (
    LARGEST_RESIDUAL_M,
    OPENCV,
    OTHER_HAND,
    are_hands,
    note_intrinsics,
    note_placement,
    note_residual,
    reposed_error_m,
    settle_joints,
    usable,
)
from handmim.hand.conventions import freihand_hand, regressed_joints
from handmim.hand.label_checks import METRES, finite, settle_axes, settle_unit
from handmim.hand.model import HandModel
from handmim.hand.skeleton import FINGERTIP_VERTS, ROOT_JOINT
from handmim.utils.findings import FEW_WRONG, Notes, level_of

Array = NDArray[np.float64]
Labels = Mapping[str, Array]

SOURCE = "unpack FreiHAND_pub_v2.zip again"
USUAL_RESIDUAL_M = 0.002  # version 2's own is 0.6 mm in the mean, up to 6
USUAL_JOINTS_M, LARGEST_JOINTS_M = 0.001, 0.005  # joints regressed from vertices, off the given
LARGEST_SCALE_ERROR = 0.02  # relative


def check_labels(
    notes: Notes,
    part: str,
    raw: Labels,
    model: HandModel | None,
    size_px: tuple[int, int] | None,
    fall_on_masks: Callable[[NDArray[np.bool_], Labels], bool] | None = None,
) -> None:
    """Note what is wrong with FreiHAND's labels of some samples; a wrong K is noted once.

    Args:
        notes: where faults are noted.
        part: training or evaluation.
        raw: by name of the list, [n, ...] each.
        model: the hand; None leaves out what needs it.
        size_px: width and height of the images; None leaves K unchecked.
        fall_on_masks: from the finite samples and their labels, whether joints fall on masks.
    """
    labels, is_finite = settled(notes, part, raw)
    k_good = "K" in labels
    if k_good and size_px is not None:
        where = f"{part}_K.json"
        k_good = note_intrinsics(notes, "freihand", labels["K"], size_px, where)
    if k_good and "xyz" in labels and fall_on_masks is not None:
        with notes.guard("freihand-mask", SOURCE):
            k_good = fall_on_masks(is_finite, labels)
    if model is not None and "verts" in labels:
        with notes.guard("freihand-residual", SOURCE):
            _note_fit(notes, part, labels, model, trust_K=k_good)


def check_every_sample(
    notes: Notes, part: str, labels: Mapping[str, NDArray[np.floating]], size_px: tuple[int, int]
) -> None:
    """Note FreiHAND samples without a possible camera, hand or position, of all samples.

    Args as of `check_labels`; labels are finite.
    """
    K = labels["K"].astype(np.float64)
    is_camera = usable(K)
    _note_samples(notes, f"{part}_K.json", is_camera, "no intrinsics of a camera", 0.0)
    if "mano" in labels:
        scaled = labels["mano"].reshape(len(K), -1)[:, 60] > 0
        _note_samples(notes, f"{part}_mano.json", scaled, "no scale above 0 as number 60")
    if "xyz" in labels and is_camera.all():
        xyz = labels["xyz"].astype(np.float64)
        possible = are_hands(xyz, OPENCV)
        _note_samples(notes, f"{part}_xyz.json", possible, "no hand of metres before the camera")
        px = np.einsum("nij,npj->npi", K, np.where(possible[:, None, None], xyz, 1.0))
        off = np.abs(px[..., :2] / px[..., 2:] - np.array(size_px) / 2) > size_px
        in_image = ~off.any(axis=2).all(axis=1) | ~possible
        where = f"{part}_xyz.json and {part}_K.json"
        _note_samples(notes, where, in_image, "all joints far outside of their image")


def _note_samples(
    notes: Notes, where: str, good: NDArray[np.bool_], what: str, few: float = FEW_WRONG
) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        text = f"{where}: {len(bad)} of {len(good)} samples have {what}, "
        text += f"the first {bad[:3].tolist()}"
        notes.judge(False, "freihand-samples", text, SOURCE, bad=level_of(len(bad), len(good), few))


def settled(notes: Notes, part: str, raw: Labels) -> tuple[dict[str, Array], NDArray[np.bool_]]:
    """FreiHAND's labels in metres, canonical order and OpenCV axes; which samples are finite."""
    num = len(next(iter(raw.values()))) if raw else 0
    is_finite = np.ones(num, bool)
    for name, values in raw.items():
        is_finite &= finite(notes, "freihand", values, f"{part}_{name}.json")
    labels = {name: values[is_finite] for name, values in raw.items()}
    for name in ("xyz", "verts"):
        where = f"{part}_{name}.json"
        with notes.guard(f"freihand-{name}", SOURCE):
            if name == "xyz" and name in labels:
                labels[name] = settle_joints(
                    notes, "freihand", labels[name], "canonical", OPENCV, where
                )
            elif name in labels:
                points = settle_unit(notes, "freihand", labels[name], where)
                labels[name] = settle_axes(notes, "freihand", points, OPENCV, where)
        if notes.failed(f"freihand-{name}"):
            labels.pop(name, None)
    if "scale" in labels and "xyz" in labels:
        _note_scale(notes, part, labels["scale"], labels["xyz"])
    return labels, is_finite


def _note_scale(notes: Notes, part: str, scale: Array, xyz_m: Array) -> None:
    ratio = scale / np.linalg.norm(xyz_m[:, ROOT_JOINT] - xyz_m[:, ROOT_JOINT + 1], axis=1)
    middle = float(np.median(ratio))
    unit = next((u for u, m in METRES.items() if abs(middle * m - 1) < 0.1), "m")
    where = f"{part}_scale.json"
    if unit != "m":
        fix = f"metres are required: multiply {where} by {METRES[unit]:g}, or {SOURCE}"
        notes.error("freihand-unit", f"{where} is in {unit}", fix)
    off = float(np.quantile(np.abs(ratio * METRES[unit] - 1), 0.9))
    notes.judge(
        off <= LARGEST_SCALE_ERROR,
        "freihand-scale",
        f"{where} is within {off:.1%} of the length from joint 9 to 10 in nine of ten samples",
        f"{where} and {part}_xyz.json do not belong together: {SOURCE}",
    )


def _note_fit(notes: Notes, part: str, labels: Labels, model: HandModel, trust_K: bool) -> None:
    """Compare posed hands with the vertices, and joints regressed from the vertices with the given.

    Without a trusted K the position of posed hands is not compared.
    """
    verts, joints_error_m = labels["verts"], None
    if "xyz" in labels:
        regressor, tips = model.arrays.J_regressor, FINGERTIP_VERTS["freihand"]
        error = np.linalg.norm(regressed_joints(verts, regressor, tips) - labels["xyz"], axis=2)
        joints_error_m = float(np.median(error.mean(axis=1)))
    together = joints_error_m is not None and joints_error_m <= USUAL_JOINTS_M
    has_pose = "mano" in labels and "K" in labels
    if has_pose and not _note_poses(notes, part, labels, model, trust_K, together):
        return  # joints of another hand's regressor have no meaning
    if joints_error_m is not None:
        notes.judge(
            together,
            "freihand-joints",
            f"{part}: joints regressed from the vertices are {joints_error_m * 1e3:.2f} mm off the "
            f"given ones (median of {len(verts)})",
            f"{part}_xyz.json and {part}_verts.json do not belong together, or the hand model is "
            f"not theirs: hand=mano hand.path=MANO_RIGHT.pkl, {SOURCE}",
            bad="error" if joints_error_m > LARGEST_JOINTS_M else "warning",
        )


def _note_poses(
    notes: Notes, part: str, labels: Labels, model: HandModel, trust_K: bool, together: bool
) -> bool:
    """Whether the vertices are those of the posed hand model."""
    hands = [
        freihand_hand(vector, K, model.arrays.hands_mean)
        for vector, K in zip(labels["mano"], labels["K"], strict=True)
    ]
    rotmats, betas, root_cam_m = (np.stack(parts) for parts in zip(*hands, strict=True))
    verts = labels["verts"]
    residuals_m = reposed_error_m(model, rotmats, betas, verts)
    fix = OTHER_HAND + SOURCE
    if np.median(residuals_m) <= LARGEST_RESIDUAL_M:
        fix = "MANO v1.2 and FreiHAND version 2 give below 2 mm: another version of either?"
    elif together:
        fix = f"vertices and joints agree, {part}_mano.json is of other samples or another "
        fix += f"version: {SOURCE}"
    posing = f"{part}: posing {model.name} by the MANO vectors misses the given vertices"
    if not note_residual(notes, "freihand", posing, residuals_m, USUAL_RESIDUAL_M, fix):
        return False
    if trust_K:
        with torch.no_grad():
            mesh = model(torch.from_numpy(rotmats), torch.from_numpy(betas))
        posed = mesh.verts_m.double().numpy()
        joints = regressed_joints(posed, model.arrays.J_regressor, FINGERTIP_VERTS["freihand"])
        placed = posed + (root_cam_m - joints[:, ROOT_JOINT])[:, None]
        off_m = np.linalg.norm(placed - verts, axis=2).mean(axis=1)
        fix = f"{part}_mano.json and {part}_K.json do not belong together: {SOURCE}"
        note_placement(
            notes, "freihand", f"{part}: vertices placed by root, scale and K", off_m, fix
        )
    return True
