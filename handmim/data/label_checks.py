"""Checks of pose labels that all layouts share: unit, order, axes, side, cameras, hand model.

A recognised fault is noted and mended in what is returned, so that it is found once.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.hand.conventions import OPENCV_FROM_OPENGL
from handmim.hand.model import HandLayer, HandMesh
from handmim.hand.skeleton import BONE_MM, BONES, LABEL_ORDERS
from handmim.utils.findings import Level, Notes

Array = NDArray[np.float64]

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
DIAGONAL_M = (0.05, 0.4)  # of the box around a hand, median of a set
OTHER_UNIT_M = 0.1  # the least of it in another unit than metres: hands in inches have less in cm
SIZES_M = (0.02, 1.0)  # the same of any hand
BONE_M = (0.005, 0.12)
# Share of hands with a bone out of that range: up to 0.06 in labels of detectors.
ODD_BONES = 0.1
PALM_M = (0.05, 0.14)  # median from wrist to middle knuckle; 0.085 to 0.1 in sets of many people
# Wrong orders are worse by a factor of 1.5 or more in labels of detectors; the right one is not
# worse than another from some 5 hands on.
MISFIT_MARGIN = 1.25
# In the right order 0.05 to 0.22, in space and in the image; a random order has 0.6.
MISFIT_LIMIT = 0.45
FEWEST = 5  # hands from which on the order is clear; up to 8 % of single ones mislead
FEWEST_SIDED = 10  # hands from which on the side is
# Share of hands of the stated side: 0.9 to 1.0 in labels of detectors, one minus that if mirrored.
MIRRORED, DOUBTFUL = 0.2, 0.35
FOCAL = (0.3, 20.0)  # in longer sides of the image; crops have long ones
SQUARE = 1.2  # largest ratio of the two focal lengths
# FreiHAND's own vertices are up to 6 mm off its MANO vectors; another hand model is off by
# centimetres.
LARGEST_RESIDUAL_M = 0.012
OTHER_HAND = "hand=mano hand.path=MANO_RIGHT.pkl; if that is chosen, "
OPENCV, OPENGL = 1, -1  # sign of z before the camera
NO_CAMERA, NO_HAND = "no intrinsics of a camera", "no hand of metres before the camera"
CAMERAS = {OPENCV: "OpenCV (z > 0)", OPENGL: "OpenGL (z < 0)"}


def diagonal_of(points: Array) -> float:
    """Median diagonal of the box around [n, P, 3] points."""
    return float(np.median(np.linalg.norm(np.ptp(points, axis=1), axis=1)))


def unit_of(points: Array) -> str | None:
    """The unit in which [n, P, 3] points are hands; None when no unit makes them so."""
    diagonal, (low, high) = diagonal_of(points), DIAGONAL_M
    for unit, metres in METRES.items():
        if (low if unit == "m" else OTHER_UNIT_M) <= diagonal * metres <= high:
            return unit
    return None


def bones(joints: Array) -> Array:
    """Lengths of the 20 bones: [n, 21, D] canonical -> [n, 20]."""
    base, end = np.array(BONES).T
    return np.linalg.norm(joints[:, end] - joints[:, base], axis=2)


def misfit(joints: Array) -> float:
    """Mean |log| of bone lengths relative to a hand's proportions: [n, 21, D] canonical."""
    lengths = bones(joints)
    shortest = np.maximum(1e-3 * lengths.mean(axis=1, keepdims=True), 1e-12)
    ratio = np.log(np.maximum(lengths, shortest) / np.array(BONE_MM))
    return float(np.abs(ratio - np.median(ratio, axis=1, keepdims=True)).mean())


def order_of(
    joints: Array, expected: str, orders: Mapping[str, tuple[int, ...]] = LABEL_ORDERS
) -> str:
    """The order in which [n, 21, D] points have a hand's proportions best; the expected one when no
    other is clearly better. Proportions, as tip and base of a closed finger are near each other."""
    misfits = {name: misfit(joints[:, list(order)]) for name, order in orders.items()}
    best = min(misfits, key=lambda name: misfits[name])
    return best if misfits[expected] > MISFIT_MARGIN * misfits[best] else expected


def right_hand_share(joints: Array) -> float:
    """Share of hands whose fingers bend as a right hand's do: the axis of the bend points from the
    little finger's knuckle to the index finger's. [n, 21, 3] canonical, right-handed frame."""
    fingers = joints[:, 5:].reshape(-1, 4, 4, 3)  # index .. little, base to tip
    segments = np.diff(fingers, axis=2)
    axes = np.cross(segments[:, :, :-1], segments[:, :, 1:]).sum(axis=(1, 2))
    return float(((axes * (joints[:, 5] - joints[:, 17])).sum(axis=1) > 0).mean())


def are_hands(joints_m: Array, sign_z: int) -> NDArray[np.bool_]:
    """Which of [n, 21, 3] joints have a hand's size in metres and lie before the camera: [n]."""
    size_m = np.linalg.norm(np.ptp(joints_m, axis=1), axis=1)
    is_sized = (size_m > SIZES_M[0]) & (size_m < SIZES_M[1])
    return is_sized & (joints_m[..., 2] * sign_z > 0).all(axis=1)


def usable(K_px: Array) -> NDArray[np.bool_]:
    """Which of [n, 3, 3] matrices are those of any camera: [n]. Zeros and singular ones are not."""
    form = (np.abs(K_px[:, 2] - [0, 0, 1]).max(axis=1) < 1e-6) & (K_px[:, 1, 0] == 0)
    return form & (K_px[:, 0, 0] > 0) & (K_px[:, 1, 1] > 0)


def settle_unit(notes: Notes, points: Array, where: str) -> Array:
    """[n, P, 3] points in metres; notes what they were in. Raises: ValueError for no unit."""
    unit = unit_of(points)
    if unit is None:
        text = f"{where}: the box around a hand has a diagonal of {diagonal_of(points):.4g}"
        raise ValueError(
            f"{text}: no hand in m, cm or mm; most have {OTHER_UNIT_M:g} to {DIAGONAL_M[1]:g} m"
        )
    fix = f"metres are required: multiply {where} by {METRES[unit]:g}"
    notes.judge(unit == "m", "unit", f"{where} is in {unit}", fix)
    return points * METRES[unit]


def settle_order(notes: Notes, joints: Array, expected: str, where: str) -> Array:
    """[n, 21, D] joints in canonical order; notes which order they were in."""
    order = order_of(joints, expected)
    bad: Level = "error" if len(joints) >= FEWEST else "warning"
    text = f"{where}: joints in order {order!r} (required: {expected!r})"
    fix = f"reorder the joints of {where} (LABEL_ORDERS in handmim/hand/skeleton.py)"
    notes.judge(order == expected, "order", text, fix, bad=bad)
    joints = joints[:, list(LABEL_ORDERS[order])]
    if (found := misfit(joints)) > MISFIT_LIMIT:
        text = f"{where}: bones have a hand's proportions in no known order (misfit {found:.2f})"
        fix = "the order is wrist, thumb, index, middle, ring, little, each from base to tip"
        notes.warning("proportions", text, fix)
    return joints


def settle_axes(notes: Notes, points: Array, sign_z: int, where: str) -> Array:
    """[n, P, 3] points before the camera in the axes of the dataset, `OPENCV` or `OPENGL`."""
    share = float((points[..., 2] * sign_z > 0).all(axis=1).mean())
    is_flipped = share < 0.5
    text = f"{where}: {share:.0%} of the hands lie before a camera of {CAMERAS[sign_z]} axes"
    fix = f"negate y and z of {where}" if is_flipped else f"unpack the original of {where} again"
    notes.judge(share == 1.0, "axes", text, fix)
    return points @ OPENCV_FROM_OPENGL if is_flipped else points


def settle_joints(notes: Notes, joints: Array, order: str, sign_z: int, where: str) -> Array:
    """[n, 21, 3] joints in metres, canonical order, the dataset's axes; notes what they were in."""
    joints = settle_order(notes, settle_unit(notes, joints, where), order, where)
    note_bones(notes, joints, where)
    return settle_axes(notes, joints, sign_z, where)


def note_bones(notes: Notes, joints_m: Array, where: str) -> None:
    """Whether bones and palms are as long as a hand's: [n, 21, 3] canonical, metres."""
    lengths = bones(joints_m)
    odd = float(((lengths < BONE_M[0]) | (lengths > BONE_M[1])).any(axis=1).mean())
    palm = float(np.median(np.linalg.norm(joints_m[:, 9] - joints_m[:, 0], axis=1)))
    low, middle, high = np.quantile(lengths, [0, 0.5, 1]) * 1e3
    text = f"{where}: bones of {low:.1f} to {high:.1f} mm, median {middle:.1f}, wrist to middle "
    text += f"knuckle {palm * 1e3:.0f} mm; {odd:.0%} of the hands have a bone out of 5 to 120 mm"
    fix = f"check the lengths in {where}: wrist to middle knuckle is 50 to 140 mm in metres"
    good = odd <= ODD_BONES and PALM_M[0] <= palm <= PALM_M[1]
    notes.judge(good, "bones", text, fix, bad="warning")


def note_side(notes: Notes, right_joints: Array, where: str) -> None:
    """Whether hands bend as hands of their stated side do: [n, 21, 3] canonical, left hands
    mirrored to right ones."""
    if len(right_joints) < FEWEST_SIDED:
        return
    share = right_hand_share(right_joints)
    text = f"{where}: {share:.0%} of {len(right_joints)} hands bend as a hand of their side does"
    fix = "left and right are exchanged, or one axis is negated: negate z, or exchange the sides"
    bad: Level = "error" if share <= MIRRORED else "warning"
    notes.judge(share >= DOUBTFUL, "mirrored", text, fix, bad=bad)


def finite(notes: Notes, labels: Mapping[str, Array]) -> NDArray[np.bool_]:
    """Which of n samples have no NaN and infinity, of labels by the name of their list; notes how
    many have some. Raises: ValueError when a list has none left."""
    masks = []
    for where, values in labels.items():
        masks.append(np.isfinite(values).reshape(len(values), -1).all(axis=1))
        num = int((~masks[-1]).sum())
        if num:
            text = f"{where}: {num} of {len(values)} samples checked hold NaN or infinity"
            notes.error("finite", text, f"unpack the original of {where} again")
        if num == len(values):
            raise ValueError(f"{where}: no sample without NaN")
    return np.asarray(np.logical_and.reduce(masks))


def note_cameras(notes: Notes, K_px: Array, size_px: tuple[int, int], where: str) -> bool:
    """Note whether [n, 3, 3] intrinsics are possible for images of (width, height)."""
    fx, fy, longer = K_px[:, 0, 0], K_px[:, 1, 1], max(size_px)
    low, high = np.minimum(fx, fy), np.maximum(fx, fy)
    good = usable(K_px) & (np.abs(K_px[:, 0, 1]) < 0.1 * longer) & (high < SQUARE * low)
    good &= (low > FOCAL[0] * longer) & (high < FOCAL[1] * longer)
    # The centre of a crop's camera may lie outside of the crop.
    good &= (np.abs(K_px[:, :2, 2] - np.array(size_px) / 2) < longer).all(axis=1)
    focal, cx, cy = (float(np.median(K_px[:, i, j])) for i, j in ((0, 0), (0, 2), (1, 2)))
    text = f"{where}: {good.mean():.0%} of the intrinsics are possible for {size_px[0]} x "
    text += f"{size_px[1]} px (medians: focal length {focal:.0f} px, centre {cx:.0f}, {cy:.0f})"
    fix = f"unpack the original of {where} again: K is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in px"
    notes.judge(bool(good.all()), "k", text, fix)
    return bool(good.all())


def posed(hand: HandLayer, *pose: NDArray[np.floating]) -> HandMesh:
    """Hands of rotations [n, 16, 3, 3], betas [n, 10], and perhaps root positions [n, 3]."""
    with torch.no_grad():
        return hand(*(torch.from_numpy(x).float() for x in pose))


def note_posing(
    notes: Notes, posed_m: Array, given_m: Array, posing: str, usual_m: float, fix: str, placed: str
) -> bool:
    """Note how far posed points [n, P, 3] are off their labels; False for another hand model. Up to
    a median of `usual_m` nothing is wrong; `placed` "" leaves the translation unchecked."""
    shift = (given_m - posed_m).mean(axis=1, keepdims=True)
    residuals_m = np.linalg.norm(posed_m + shift - given_m, axis=2).mean(axis=1)
    residual_m, off_m = (float(np.median(x)) for x in (residuals_m, np.linalg.norm(shift, axis=2)))
    is_good = residual_m <= LARGEST_RESIDUAL_M
    worst = f"median of {len(residuals_m)}, worst {residuals_m.max() * 1e3:.2f}"
    text = f"{posing} by {residual_m * 1e3:.2f} mm ({worst})"
    bad: Level = "warning" if is_good else "error"
    notes.judge(residual_m <= usual_m, "residual", text, fix, bad=bad)
    if is_good and placed:
        text = f"{placed} are {off_m * 1e3:.2f} mm off the given ones (median)"
        notes.judge(off_m <= LARGEST_RESIDUAL_M, "placement", text)
    return is_good
