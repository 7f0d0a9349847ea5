"""Whether FreiHAND's labels agree with each other, the hand model and the conventions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.camera_checks import note_intrinsics, usable
from handmim.data.layouts import VERSIONS
from handmim.data.provenance import LARGEST_RESIDUAL_M, reposed_error_m
from handmim.hand.conventions import freihand_hand, regressed_joints
from handmim.hand.label_checks import (
    METRES,
    SIZES_M,
    finite,
    note_bones,
    settle_axes,
    settle_order,
    settle_unit,
)
from handmim.hand.model import HandModel
from handmim.hand.skeleton import FINGERTIP_VERTS, ROOT_JOINT
from handmim.utils.findings import FEW_WRONG, Notes, level_of, shown

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Labels = Mapping[str, Array]

SOURCE = "unpack FreiHAND_pub_v2.zip again"
USUAL_RESIDUAL_M = 0.002  # version 2's own is 0.6 mm in the mean, up to 6
USUAL_JOINTS_M = 0.001
LARGEST_JOINTS_M = 0.005
LARGEST_SCALE_ERROR = 0.02  # relative


def check_labels(
    notes: Notes,
    part: str,
    raw: Labels,
    model: HandModel | None,
    size_px: tuple[int, int] | None,
    fall_on_masks: Callable[[NDArray[np.bool_], Labels], bool] | None = None,
) -> None:
    """Note what is wrong with labels of some samples; a wrong K is noted once.

    Args:
        notes: where faults are noted.
        part: training or evaluation.
        raw: by name of the list, [n, ...] each.
        model: the hand; None leaves out what needs it.
        size_px: width and height of the images; None leaves K unchecked.
        fall_on_masks: from the samples kept and their labels, whether joints fall on masks.
    """
    labels, kept = settled(notes, part, raw)
    k_good = "K" in labels
    if k_good and size_px is not None:
        where = f"{part}_K.json"
        k_good = note_intrinsics(notes, "freihand", labels["K"], size_px, where)
    if k_good and "xyz" in labels and fall_on_masks is not None:
        with notes.guard("freihand-mask", SOURCE):
            k_good = fall_on_masks(kept, labels)
    with notes.guard("freihand-residual", SOURCE):
        note_fit(notes, part, labels, model, trust_K=k_good)


def check_every_sample(
    notes: Notes, part: str, labels: Mapping[str, NDArray[np.floating]], size_px: tuple[int, int]
) -> None:
    """Note samples whose camera, hand or place is none: `check_labels` looks at some of them.

    Args:
        notes: where faults are noted.
        part: training or evaluation.
        labels: finite ones by name of the list, all samples.
        size_px: width and height of the images.
    """
    K = labels["K"].astype(np.float64)
    is_camera = usable(K)
    _note_samples(notes, f"{part}_K.json", is_camera, "no intrinsics of a camera", 0.0)
    if "mano" in labels:
        scaled = labels["mano"].reshape(len(K), -1)[:, 60] > 0
        _note_samples(notes, f"{part}_mano.json", scaled, "no scale above 0 as number 60")
    if "xyz" in labels and is_camera.all():
        xyz = labels["xyz"].astype(np.float64)
        size_m = np.linalg.norm(np.ptp(xyz, axis=1), axis=1)
        are_hands = (size_m > SIZES_M[0]) & (size_m < SIZES_M[1]) & (xyz[..., 2] > 0).all(axis=1)
        _note_samples(notes, f"{part}_xyz.json", are_hands, "no hand of metres before the camera")
        px = np.einsum("nij,npj->npi", K, np.where(are_hands[:, None, None], xyz, 1.0))
        off = np.abs(px[..., :2] / px[..., 2:] - np.array(size_px) / 2) > size_px
        in_image = ~off.any(axis=2).all(axis=1) | ~are_hands
        where = f"{part}_xyz.json and {part}_K.json"
        _note_samples(notes, where, in_image, "all joints far outside of their image")


def _note_samples(
    notes: Notes, where: str, good: NDArray[np.bool_], what: str, few: float = FEW_WRONG
) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        text = (
            f"{where}: {len(bad)} of {len(good)} samples have {what}, the first {bad[:3].tolist()}"
        )
        notes.judge(False, "freihand-samples", text, SOURCE, bad=level_of(len(bad), len(good), few))


def present_versions(
    names: set[str], samples: Sequence[int], num: int, versions: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """Those of the versions that have images; what is missing is logged.

    Args:
        names: of the files in the folder.
        samples: unique samples that are used.
        num: unique samples of the part.
        versions: required ones.
        folder: of the images, for messages.
    Raises: FileNotFoundError when none has; ValueError for images beyond the labels.
    """
    missing: dict[str, list[str]] = {}
    for version in versions:
        first = num * VERSIONS.index(version)
        ids = [f"{first + int(sample):08d}.jpg" for sample in samples]
        missing[version] = [name for name in ids if name not in names]
    last = max((name for name in names if name[:8].isdigit()), default="")
    if last and int(last[:8]) >= num * (len(VERSIONS) if folder.parent.name == "training" else 1):
        raise ValueError(
            f"{folder} has images up to {last}, the lists have {num} entries: they are of "
            "different versions, or the lists are cut off; unpack FreiHAND again (data.root)"
        )
    there = tuple(version for version in versions if len(missing[version]) < len(samples))
    lost = [name for version in there or versions for name in missing[version]]
    counts = ", ".join(f"{v} {len(samples) - len(missing[v])}" for v in versions)
    text = f"{folder} has of {len(samples)} images of each version: {counts}"
    if not there:
        raise FileNotFoundError(f"{text}; missing {shown(lost)} (data.root)")
    if there != tuple(versions):
        names_there = ",".join(there)
        log.warning("%s: training on %s (data.versions=[%s])", text, names_there, names_there)
    if lost:
        log.warning("%s; missing %s: unpack FreiHAND again", text, shown(lost))
    return there


def settled(notes: Notes, part: str, raw: Labels) -> tuple[dict[str, Array], NDArray[np.bool_]]:
    """Labels in metres, canonical order and OpenCV axes, and which samples were kept.

    Args:
        notes: where faults are noted.
        part: training or evaluation.
        raw: by name of the list, [n, ...] each.
    """
    num = len(next(iter(raw.values()))) if raw else 0
    kept = np.ones(num, bool)
    for name, values in raw.items():
        kept &= finite(notes, "freihand", values, f"{part}_{name}.json")
    labels = {name: values[kept] for name, values in raw.items()}
    for name in ("xyz", "verts"):
        if name in labels:
            with notes.guard(f"freihand-{name}", SOURCE):
                labels[name] = _settle(notes, f"{part}_{name}.json", labels[name], name == "xyz")
        if notes.failed(f"freihand-{name}"):
            labels.pop(name, None)
    if "scale" in labels and "xyz" in labels:
        _scale(notes, part, labels["scale"], labels["xyz"])
    return labels, kept


def _settle(notes: Notes, where: str, points: Array, are_joints: bool) -> Array:
    points = settle_unit(notes, "freihand", points, where)
    if are_joints:
        points = settle_order(notes, "freihand", points, "canonical", where)
        note_bones(notes, "freihand", points, where)
    return settle_axes(notes, "freihand", points, 1, where)


def _scale(notes: Notes, part: str, scale: Array, xyz_m: Array) -> None:
    ratio = scale / np.linalg.norm(xyz_m[:, ROOT_JOINT] - xyz_m[:, ROOT_JOINT + 1], axis=1)
    middle = float(np.median(ratio))
    unit = next((u for u, m in METRES.items() if abs(middle * m - 1) < 0.1), "m")
    where = f"{part}_scale.json"
    if unit != "m":
        fix = f"metres are wanted: multiply {where} by {METRES[unit]:g}, or {SOURCE}"
        notes.error("freihand-unit", f"{where} is in {unit}", fix)
    off = float(np.quantile(np.abs(ratio * METRES[unit] - 1), 0.9))
    notes.judge(
        off <= LARGEST_SCALE_ERROR,
        "freihand-scale",
        f"{where} is within {off:.1%} of the length from joint 9 to 10 in nine of ten samples",
        f"{where} and {part}_xyz.json do not belong together: {SOURCE}",
    )


def note_fit(
    notes: Notes, part: str, labels: Labels, model: HandModel | None, trust_K: bool
) -> None:
    """Pose the hand by the MANO vectors and compare; regress joints from vertices and compare.

    Args:
        notes: where findings go.
        part: training or evaluation.
        labels: as `settled` gives them.
        model: the hand; None leaves everything out.
        trust_K: False when K is known to be wrong: where hands stand then says nothing new.
    """
    if model is None or "verts" not in labels:
        return
    arrays, verts = model.arrays, labels["verts"]
    joints_error_m = None
    if "xyz" in labels:
        joints = regressed_joints(verts, arrays.J_regressor, FINGERTIP_VERTS["freihand"])
        error = np.linalg.norm(joints - labels["xyz"], axis=2).mean(axis=1)
        joints_error_m = float(np.median(error))
    if (
        "mano" in labels
        and "K" in labels
        and not _poses(notes, part, labels, model, trust_K, joints_error_m)
    ):
        return  # another hand's regressor says nothing about joints
    if joints_error_m is not None:
        bad = joints_error_m > LARGEST_JOINTS_M
        notes.judge(
            joints_error_m <= USUAL_JOINTS_M,
            "freihand-joints",
            f"{part}: joints regressed from the vertices are {joints_error_m * 1e3:.2f} mm off the "
            f"given ones (median of {len(verts)})",
            f"{part}_xyz.json and {part}_verts.json do not belong together, or the hand model is "
            f"not theirs: hand=mano hand.path=MANO_RIGHT.pkl, {SOURCE}",
            bad="error" if bad else "warning",
        )


def _poses(
    notes: Notes,
    part: str,
    labels: Labels,
    model: HandModel,
    trust_K: bool,
    joints_error_m: float | None,
) -> bool:
    """Note the residual in mm; False when it is too large."""
    hands = [
        freihand_hand(vector, K, model.arrays.hands_mean)
        for vector, K in zip(labels["mano"], labels["K"], strict=True)
    ]
    rotmats, betas, root_cam_m = (np.stack(parts) for parts in zip(*hands, strict=True))
    verts = labels["verts"]
    residuals_m = reposed_error_m(model, rotmats, betas, verts)
    residual_m = float(np.median(residuals_m))
    good = residual_m <= LARGEST_RESIDUAL_M
    together = joints_error_m is not None and joints_error_m <= USUAL_JOINTS_M
    if good:
        fix = "MANO v1.2 and FreiHAND version 2 give below 2 mm: another version of either?"
    elif together:
        fix = f"vertices and joints agree, {part}_mano.json is of other samples or another "
        fix += f"version: {SOURCE}"
    else:
        fix = f"hand=mano hand.path=MANO_RIGHT.pkl; if that is chosen, {SOURCE}"
    notes.judge(
        residual_m <= USUAL_RESIDUAL_M,
        "freihand-residual",
        f"{part}: posing {model.name} by the MANO vectors misses the given vertices by "
        f"{residual_m * 1e3:.2f} mm (median of {len(verts)}, worst {residuals_m.max() * 1e3:.2f})",
        fix,
        bad="warning" if good else "error",
    )
    if good and trust_K:
        _places(notes, part, model, rotmats, betas, root_cam_m, verts)
    return good


def _places(
    notes: Notes,
    part: str,
    model: HandModel,
    rotmats: Array,
    betas: Array,
    root_cam_m: Array,
    verts_cam_m: Array,
) -> None:
    with torch.no_grad():
        posed = model(torch.from_numpy(rotmats), torch.from_numpy(betas)).verts_m.double().numpy()
    joints = regressed_joints(posed, model.arrays.J_regressor, FINGERTIP_VERTS["freihand"])
    placed = posed + (root_cam_m - joints[:, ROOT_JOINT])[:, None]
    off_m = float(np.median(np.linalg.norm(placed - verts_cam_m, axis=2).mean(axis=1)))
    notes.judge(
        off_m <= LARGEST_RESIDUAL_M,
        "freihand-placement",
        f"{part}: hands placed by root, scale and K are {off_m * 1e3:.2f} mm off the given "
        f"vertices (median of {len(verts_cam_m)})",
        f"{part}_mano.json and {part}_K.json do not belong together: {SOURCE}",
    )
