"""Finding what is wrong with a submission before a server or a table does."""

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.label_checks import (
    FEWEST_SIDED,
    METRES,
    diagonal_of,
    misfit,
    order_of,
    right_hand_share,
    unit_of,
)
from handmim.evaluation.benchmarks import NUM_VERTS, Benchmark, Points, as_numpy, not_finite
from handmim.hand.skeleton import FINGERTIP_VERTS, FOREIGN_ORDERS, NUM_JOINTS, SKELETONS
from handmim.metrics.pose import MIRRORED_SHARE, mirrored
from handmim.utils.findings import Finding, Notes, spread

KNOWN_ORDERS = {name: SKELETONS[name] for name in ("freihand", *FOREIGN_ORDERS)}
UNIT_NAMES = {"m": "metres", "cm": "centimetres", "mm": "millimetres"}
TYPICAL_M = 0.2  # diagonal of the box around a hand
# Mean distance of joints to their nearest vertex: 0.007 to 0.010 m on hands in all poses.
OFF_VERTS_M = 0.03
# Fingertips to their vertices: 0 to 0.002 m by the table of vertices, some 0.08 in a random order.
OFF_TIPS_M = 0.05
# Misfit in the right order: 0.07 on clean hands, 0.27 under 1 cm of noise; a random order has more.
MISFIT_LIMIT = 0.4
# Hands whose fingers bend the wrong way: none in plausible hands, 2 % under 1 cm of noise, 10 %
# under 2 cm.
BEND_SHARE = 0.3
DEPTH_M = (0.1, 3.0)
MOST_CHECKED = 500
MIRROR_FIX = (
    "the alignment of the official scores allows reflections and hides it; negate one axis, x for "
    "a hand that was predicted from a mirrored image"
)


def check_submission(
    joints: Points, verts: Points, benchmark: Benchmark, true_joints: Points | None = None
) -> list[Finding]:
    """What would be refused or score badly for a reason that has nothing to do with the method.

    Proportions, units and distances are checked in up to 500 samples spread over the set; signs,
    zeros and values that are not finite in all. Joints [n, 21, 3] and vertices [n, 778, 3] are as
    they would be written; with `true_joints` mirror images are found one by one.
    """
    notes, joints, verts = Notes(), as_numpy(joints), as_numpy(verts)
    shapes = joints.shape[1:], verts.shape[1:]
    fits = shapes == ((NUM_JOINTS, 3), (NUM_VERTS, 3)) and len(joints) == len(verts) > 0
    if not fits or not {joints.dtype.kind, verts.dtype.kind} <= set("fiu"):
        came = f"joints are {joints.shape} and vertices {verts.shape}"
        notes.error("shape", f"{came}, [n, 21, 3] and [n, 778, 3] are required")
        return notes.findings
    num, expected = len(joints), benchmark.num_samples
    if num != expected:
        text = f"{num} samples, {benchmark.name} has {expected}: send one for each evaluation image"
        notes.error("count", f"{text}, in the order of the list")
    bad = np.union1d(not_finite(joints), not_finite(verts))
    if len(bad):
        text = f"{len(bad)} samples hold NaN or infinity, the first {bad[:5].tolist()}: the "
        text += "evaluation stops at the first; send any finite hand instead"
        notes.error("not-finite", text)
        good = np.setdiff1d(np.arange(len(joints)), bad)
        joints, verts = joints[good], verts[good]
        true_joints = None if true_joints is None else true_joints[good]
        if not len(good):
            return notes.findings
    _check_axes(notes, joints, verts, benchmark)
    some = spread(len(joints), MOST_CHECKED)
    knows_truth = true_joints is not None and len(true_joints) == len(joints)
    hands, meshes = (points[some].astype(np.float64) for points in (joints, verts))
    _check_hands(notes, hands, meshes, benchmark, checks_side=not knows_truth)
    if true_joints is not None and knows_truth:
        pair = (torch.from_numpy(as_numpy(a).astype(np.float64)) for a in (joints, true_joints))
        share = float(mirrored(*pair).double().mean())
        if share >= MIRRORED_SHARE:
            text = f"{share:.0%} of the {len(joints)} hands are mirror images of the ground truth"
            notes.warning("mirrored", f"{text}: {MIRROR_FIX}")
    empty = ~verts.any(axis=(1, 2))
    if empty.any():
        text = f"all vertices are zero in {empty.sum()} of {len(verts)} samples: right for a "
        text += "joints-only method, whose mesh metrics then mean nothing; else the mesh was lost"
        notes.warning("zero-verts", text)
    if len(joints) > 1 and np.abs(joints - joints[0]).max() < 1e-6:
        text = f"all {len(joints)} samples have the same joints: the images made no difference"
        notes.warning("constant", text)
    return notes.findings


def _check_axes(
    notes: Notes,
    joints: NDArray[np.floating],
    verts: NDArray[np.floating],
    benchmark: Benchmark,
) -> None:
    side, axes = (1, "OpenCV") if benchmark.axes == "opencv" else (-1, "OpenGL")
    behind = [(side * points[..., 2] < 0).all(axis=1) for points in (joints, verts)]
    counts, either = [int(b.sum()) for b in behind], behind[0] | behind[1]
    # HO-3D's own writer refuses a single one; FreiHAND's evaluation takes them as bad hands.
    is_hard = benchmark.axes == "opengl" or either.mean() > 0.5
    if either.any():
        text = (
            f"behind the camera are all joints in {counts[0]} and all vertices in {counts[1]} of "
        )
        text += f"{len(joints)} samples: {benchmark.name} requires {axes} axes, hands at z "
        text += f"{'>' if side > 0 else '<'} 0; multiply y and z by -1 if the axes are the others"
        notes.judge(False, "behind-camera", text, bad="error" if is_hard else "warning")


def _check_hands(
    notes: Notes,
    joints: NDArray[np.float64],
    verts: NDArray[np.float64],
    benchmark: Benchmark,
    checks_side: bool,
) -> None:
    """Check single hands; `joints` and `verts` are a part of the set."""
    is_hand, has_verts = (np.ptp(points, axis=1).any(axis=1) for points in (joints, verts))
    if not is_hand.any():
        text = "all joints of a hand lie in one point: is anything predicted?"
        notes.warning("collapsed", text)
        return
    has_verts = has_verts[is_hand]
    joints, verts = joints[is_hand], verts[is_hand][has_verts]
    joints, _ = _in_metres(notes, joints, "joints")
    order = _order_of(notes, joints, benchmark)
    if order == benchmark.skeleton and checks_side and len(joints) >= FEWEST_SIDED:
        share = 1 - right_hand_share(joints[:, KNOWN_ORDERS[order]])
        if share >= BEND_SHARE:
            text = f"{share:.0%} of the hands bend like mirror images of right hands"
            notes.warning("mirrored", f"{text}: {MIRROR_FIX}")
    wrist, root = (joints[:, benchmark.joint_names.index(n)] for n in ("wrist", "middle_1"))
    depth = float(np.median(np.abs(joints[..., 2].mean(axis=1))))
    if min(np.abs(wrist).max(), np.abs(root).max()) < 1e-6:
        text = (
            "the wrist or the middle knuckle is at the origin in every sample: unaligned metrics "
        )
        text += "compare absolute coordinates; add the root translation, or quote aligned ones"
        notes.warning("root-relative", text)
    elif not DEPTH_M[0] <= depth <= DEPTH_M[1]:
        text = f"hands are {depth:.2f} m from the camera by their median, expected {DEPTH_M[0]} to "
        text += f"{DEPTH_M[1]} m: unaligned metrics need the true root translation"
        notes.warning("depth", text)
    if has_verts.any():
        verts, is_known = _in_metres(notes, verts, "vertices")
        if is_known:
            _check_mesh(notes, joints[has_verts], verts, order)


def _in_metres(
    notes: Notes, points: NDArray[np.float64], what: str
) -> tuple[NDArray[np.float64], bool]:
    """Points scaled to metres, and whether they were in a known unit."""
    unit, size = unit_of(points), diagonal_of(points)
    guess = "they look normalised, by a bone or a box: undo that"
    if unit is not None:
        guess = f"they look like {UNIT_NAMES[unit]}, divide by {1 / METRES[unit]:.0f}"
    if unit != "m":
        text = f"the box around the {what} of a hand has a diagonal of {size:.3g}, of a true hand "
        notes.error("unit", f"{text}some {TYPICAL_M} m, and metres are required: {guess}")
    return points * (TYPICAL_M / size if unit is None else METRES[unit]), unit is not None


def _order_of(notes: Notes, joints_m: NDArray[np.float64], benchmark: Benchmark) -> str | None:
    """The known order whose bones have a hand's proportions best, None if none has them."""
    claimed = benchmark.skeleton
    order = order_of(joints_m, claimed, KNOWN_ORDERS)
    if misfit(joints_m[:, KNOWN_ORDERS[order]]) > MISFIT_LIMIT:
        text = "the bones have a hand's proportions in no known joint order: an order of its own, "
        notes.warning("bone-lengths", f"{text}or very bad joints")
        return None
    if order != claimed:
        text = f"the bones have a hand's proportions in the order '{order}', not in '{claimed}' "
        notes.error("joint-order", f"{text}that {benchmark.name} requires: reorder the joints")
    return order


def _check_mesh(
    notes: Notes, joints_m: NDArray[np.float64], verts_m: NDArray[np.float64], order: str | None
) -> None:
    parts = (torch.from_numpy(points).split(64) for points in (joints_m, verts_m))
    nearest = [torch.cdist(*part).amin(dim=2) for part in zip(*parts, strict=True)]
    distance = float(torch.cat(nearest).mean(dim=1).median())
    if distance > OFF_VERTS_M:
        text = f"joints lie {distance * 1e3:.0f} mm from the nearest vertex on average, on a hand "
        text += "about 10: joints and vertices must share axes, unit and origin"
        notes.error("joints-off-verts", text)
    elif order is not None:
        tips = joints_m[:, KNOWN_ORDERS[order][4::4]] - verts_m[:, FINGERTIP_VERTS["freihand"]]
        distance = float(np.median(np.linalg.norm(tips, axis=2).mean(axis=1)))
        if distance > OFF_TIPS_M:
            text = f"fingertip vertices lie {distance * 1e3:.0f} mm from the fingertips: vertices "
            text += "are required in MANO's order, of the hand that the joints are of"
            notes.warning("verts-order", text)
