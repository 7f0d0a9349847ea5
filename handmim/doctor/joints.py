"""Unit, order and axes of labelled joints, told from the joints alone.

A fault that is recognised is reported and then mended in what is handed on, so that one fault does
not show up again under other names.
"""

import numpy as np
from numpy.typing import NDArray

from handmim.doctor.findings import Notes
from handmim.hand.conventions import OPENCV_FROM_OPENGL
from handmim.hand.skeleton import BONES, FOREIGN_ORDERS, SKELETONS

Array = NDArray[np.float64]

# Told apart by the length of the skeleton they give; in a picture nothing else is left of bones.
ORDERS = {name: SKELETONS[name] for name in ("canonical", *FOREIGN_ORDERS)}
METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
DIAGONAL_M = (0.05, 0.4)  # of the box around a hand
BONE_M = (0.005, 0.12)
MUCH_SHORTER = 0.9  # skeleton by another order, relative to the expected one


def unit_of(points: Array) -> str | None:
    """The unit in which [n, P, 3] points are hands; None when no unit makes them so."""
    diagonal = float(np.median(np.linalg.norm(np.ptp(points, axis=1), axis=1)))
    low, high = DIAGONAL_M
    return next((u for u, m in METRES.items() if low <= diagonal * m <= high), None)


def bones(joints: Array) -> Array:
    """Lengths of the 20 bones: [n, 21, D] canonical -> [n, 20]."""
    base, end = np.array(BONES).T
    return np.linalg.norm(joints[:, end] - joints[:, base], axis=2)


def order_of(joints: Array, expected: str) -> str:
    """The order in which [n, 21, D] points make the shortest skeletons; the expected one when no
    other is clearly shorter."""
    length = {name: bones(joints[:, list(o)]).sum(axis=1).mean() for name, o in ORDERS.items()}
    best = min(length, key=lambda name: length[name])
    return best if length[best] < MUCH_SHORTER * length[expected] else expected


def settle_unit(notes: Notes, prefix: str, points: Array, where: str) -> Array:
    """[n, P, 3] points in metres; notes what they were in.

    Raises: ValueError when they are no hands in any unit.
    """
    unit = unit_of(points)
    if unit is None:
        size = float(np.median(np.linalg.norm(np.ptp(points, axis=1), axis=1)))
        raise ValueError(f"{where}: the box around a hand has a diagonal of {size:.4g}: no hand")
    notes.judge(
        unit == "m",
        f"{prefix}-unit",
        f"{where} is in {unit}",
        f"metres are wanted: multiply {where} by {METRES[unit]:g}, or unpack the original again",
    )
    return points * METRES[unit]


def settle_order(notes: Notes, prefix: str, joints: Array, expected: str, where: str) -> Array:
    """[n, 21, D] joints in canonical order; notes which order they were in."""
    order = order_of(joints, expected)
    notes.judge(
        order == expected,
        f"{prefix}-order",
        f"{where}: joints in order {order!r}"
        + ("" if order == expected else f", wanted {expected!r}"),
        f"reorder {where} (joint_order in handmim/hand/skeleton.py), or unpack the original again",
    )
    return joints[:, list(ORDERS[order])]


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
    turned = share < 0.5
    notes.judge(
        share == 1.0,
        f"{prefix}-axes",
        f"{where}: {share:.0%} of the hands lie before a camera of {names[sign_z]} axes",
        f"negate y and z of {where}" if turned else f"unpack the original of {where} again",
    )
    return points @ OPENCV_FROM_OPENGL if turned else points


def note_bones(notes: Notes, prefix: str, joints_m: Array, where: str) -> None:
    """Whether bones are as long as bones are: [n, 21, 3] canonical, metres."""
    lengths = bones(joints_m)
    low, high = float(lengths.min()), float(lengths.max())
    notes.judge(
        low >= BONE_M[0] and high <= BONE_M[1],
        f"{prefix}-bones",
        f"{where}: bones of {low * 1e3:.1f} to {high * 1e3:.1f} mm, median "
        f"{np.median(lengths) * 1e3:.1f}",
        "look at these labels: a bone is 5 to 120 mm long",
        bad="warning",
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
