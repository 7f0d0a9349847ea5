"""Unit, order, axes and side of labelled joints, measured from the joints alone.

A recognised fault is noted and then mended in what is returned, so that one fault does not show up
again under other names.
"""

import numpy as np
from numpy.typing import NDArray

from handmim.hand.conventions import OPENCV_FROM_OPENGL
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


def unit_of(points: Array) -> str | None:
    """The unit in which [n, P, 3] points are hands; None when no unit makes them so."""
    diagonal = float(np.median(np.linalg.norm(np.ptp(points, axis=1), axis=1)))
    low, high = DIAGONAL_M
    lows = {unit: low if unit == "m" else OTHER_UNIT_M for unit in METRES}
    return next((u for u, m in METRES.items() if lows[u] <= diagonal * m <= high), None)


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


def order_of(joints: Array, expected: str) -> str:
    """The order in which [n, 21, D] points have a hand's proportions best; the expected one when no
    other is clearly better."""
    misfits = {name: misfit(joints[:, list(order)]) for name, order in LABEL_ORDERS.items()}
    best = min(misfits, key=lambda name: misfits[name])
    return best if misfits[expected] > MISFIT_MARGIN * misfits[best] else expected


def right_hand_share(joints: Array) -> float:
    """Share of hands whose fingers bend as a right hand's do.

    Finger joints bend one way only: the axis of the bend points from the little finger's knuckle to
    the index finger's on a right hand.

    Args:
        joints: [n, 21, 3] canonical, any unit, in a right-handed frame such as OpenCV's or OpenGL's
            camera.
    """
    fingers = joints[:, 5:].reshape(-1, 4, 4, 3)  # index .. little, base to tip
    segments = np.diff(fingers, axis=2)
    axes = np.cross(segments[:, :, :-1], segments[:, :, 1:]).sum(axis=(1, 2))
    return float(((axes * (joints[:, 5] - joints[:, 17])).sum(axis=1) > 0).mean())


def settle_unit(notes: Notes, prefix: str, points: Array, where: str) -> Array:
    """[n, P, 3] points in metres; notes what they were in.

    Raises: ValueError when they are no hands in any unit.
    """
    unit = unit_of(points)
    if unit is None:
        size = float(np.median(np.linalg.norm(np.ptp(points, axis=1), axis=1)))
        raise ValueError(
            f"{where}: the box around a hand has a diagonal of {size:.4g}: no hand in m, cm or mm, "
            f"of which most have {OTHER_UNIT_M:g} to {DIAGONAL_M[1]:g} m"
        )
    notes.judge(
        unit == "m",
        f"{prefix}-unit",
        f"{where} is in {unit}",
        f"metres are required: multiply {where} by {METRES[unit]:g}",
    )
    return points * METRES[unit]


def settle_order(notes: Notes, prefix: str, joints: Array, expected: str, where: str) -> Array:
    """[n, 21, D] joints in canonical order; notes which order they were in."""
    order = order_of(joints, expected)
    bad: Level = "error" if len(joints) >= FEWEST else "warning"
    notes.judge(
        order == expected,
        f"{prefix}-order",
        f"{where}: joints in order {order!r}"
        + ("" if order == expected else f", {expected!r} is required"),
        f"reorder the joints of {where} (LABEL_ORDERS in handmim/hand/skeleton.py)",
        bad=bad,
    )
    joints = joints[:, list(LABEL_ORDERS[order])]
    found = misfit(joints)
    if found > MISFIT_LIMIT:
        notes.warning(
            f"{prefix}-proportions",
            f"{where}: bones have a hand's proportions in no known joint order (misfit "
            f"{found:.2f}, of hands at most {MISFIT_LIMIT})",
            "the order is wrist, thumb, index, middle, ring, little, each from base to tip",
        )
    return joints


def settle_axes(notes: Notes, prefix: str, points: Array, sign_z: int, where: str) -> Array:
    """[n, P, 3] points before the camera in the axes of the dataset.

    Args:
        notes, prefix: where and how findings are noted.
        points: metres.
        sign_z: 1 for OpenCV's axes (hands at z > 0), -1 for OpenGL's.
        where: file, for the text.
    """
    share = float((points[..., 2] * sign_z > 0).all(axis=1).mean())
    names = {1: "OpenCV (z > 0)", -1: "OpenGL (z < 0)"}
    is_flipped = share < 0.5
    notes.judge(
        share == 1.0,
        f"{prefix}-axes",
        f"{where}: {share:.0%} of the hands lie before a camera of {names[sign_z]} axes",
        f"negate y and z of {where}" if is_flipped else f"unpack the original of {where} again",
    )
    return points @ OPENCV_FROM_OPENGL if is_flipped else points


def note_bones(notes: Notes, prefix: str, joints_m: Array, where: str) -> None:
    """Whether bones and palms are as long as a hand's: [n, 21, 3] canonical, metres."""
    lengths = bones(joints_m)
    odd = float(((lengths < BONE_M[0]) | (lengths > BONE_M[1])).any(axis=1).mean())
    palm = float(np.median(np.linalg.norm(joints_m[:, 9] - joints_m[:, 0], axis=1)))
    notes.judge(
        odd <= ODD_BONES and PALM_M[0] <= palm <= PALM_M[1],
        f"{prefix}-bones",
        f"{where}: bones of {lengths.min() * 1e3:.1f} to {lengths.max() * 1e3:.1f} mm, median "
        f"{np.median(lengths) * 1e3:.1f}, wrist to middle knuckle {palm * 1e3:.0f} mm; {odd:.0%} "
        "of the hands have a bone out of 5 to 120 mm",
        f"check the lengths in {where}: wrist to middle knuckle is 50 to 140 mm in metres",
        bad="warning",
    )


def note_side(notes: Notes, prefix: str, right_joints: Array, where: str) -> None:
    """Whether hands bend as hands of their stated side do.

    Args:
        notes, prefix: where and how findings are noted.
        right_joints: [n, 21, 3] canonical, left hands mirrored to right ones.
        where: file or field, for the text.
    """
    share = right_hand_share(right_joints)
    if len(right_joints) < FEWEST_SIDED:
        return
    notes.judge(
        share >= DOUBTFUL,
        f"{prefix}-mirrored",
        f"{where}: {share:.0%} of {len(right_joints)} hands bend as a hand of their side does",
        "left and right are exchanged, or one axis is negated: negate z, or exchange the sides",
        bad="error" if share <= MIRRORED else "warning",
    )


def finite(notes: Notes, prefix: str, values: Array, where: str) -> NDArray[np.bool_]:
    """Rows of [n, ...] without NaN and infinity, as a mask [n]; notes how many have some.

    Raises: ValueError when none is left.
    """
    good = np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if not good.all():
        notes.error(
            f"{prefix}-finite",
            f"{where}: {(~good).sum()} of {len(good)} samples looked at hold NaN or infinity",
            f"unpack the original of {where} again",
        )
    if not good.any():
        raise ValueError(f"{where}: no sample without NaN")
    return good
