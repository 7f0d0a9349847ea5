"""Finding what is wrong with a submission before a server or a table does."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.evaluation.benchmarks import NUM_VERTS, Benchmark, Points, as_numpy, not_finite
from handmim.hand.label_checks import FEWEST_SIDED, right_hand_share
from handmim.hand.skeleton import (
    BONE_MM,
    BONES,
    FINGERTIP_VERTS,
    FOREIGN_ORDERS,
    NUM_JOINTS,
    SKELETONS,
)
from handmim.metrics.neighbours import nearest_distances_m
from handmim.metrics.pose import MIRRORED_SHARE, mirrored


@dataclass(frozen=True)
class Finding:
    """Something wrong with a submission, or odd about it."""

    level: Literal["error", "warning"]
    name: str
    text: str  # what came, what is required, how to mend it


KNOWN_ORDERS = {name: SKELETONS[name] for name in ("freihand", *FOREIGN_ORDERS)}
# Root mean square distance of joints or vertices from their centre: 0.034 to 0.074 m on hands in
# all poses. The ranges of the units do not meet.
SPREAD_M = (0.015, 0.15)
UNITS = {"metres": 1.0, "centimetres": 100.0, "millimetres": 1000.0}
# Mean distance of joints to their nearest vertex: 0.007 to 0.010 m on hands in all poses.
OFF_VERTS_M = 0.03
# Fingertips to their vertices: 0 to 0.002 m by the table of vertices, some 0.08 in a random order.
OFF_TIPS_M = 0.05
# Mean |log| of a bone's length to its share of the hand, in the right order: 0.07 on clean hands,
# 0.27 under 1 cm of noise; in a wrong one 0.26 to 0.63, in a random one more.
MISFIT_MARGIN, MISFIT_LIMIT = 1.25, 0.4
# Hands whose fingers bend the wrong way: none in plausible hands, 2 % under 1 cm of noise, 10 %
# under 2 cm.
BEND_SHARE = 0.3
DEPTH_M = (0.1, 3.0)
MOST_CHECKED = 500


def check_submission(
    joints: Points, verts: Points, benchmark: Benchmark, true_joints: Points | None = None
) -> list[Finding]:
    """What would be refused or score badly for a reason that has nothing to do with the method.

    Proportions, units and distances are checked in up to 500 samples spread over the set; signs,
    zeros and values that are not finite in all.

    Args:
        joints: [n, 21, 3] as they would be written.
        verts: [n, 778, 3].
        benchmark: that they are meant for.
        true_joints: [n, 21, 3] where they are known: then mirror images are found one by one.
    Returns: findings, none when all is well. Names: shape, count, not-finite, behind-camera, unit,
        collapsed, joint-order, bone-lengths, mirrored, root-relative, depth, zero-verts,
        joints-off-verts, verts-order, constant.
    """
    joints, verts = as_numpy(joints), as_numpy(verts)
    shapes = joints.shape[1:], verts.shape[1:]
    kinds = joints.dtype.kind + verts.dtype.kind
    fits = shapes == ((NUM_JOINTS, 3), (NUM_VERTS, 3)) and len(joints) == len(verts) > 0
    if not fits or not set(kinds) <= set("fiu"):
        came = f"joints are {joints.shape} and vertices {verts.shape}"
        text = f"{came}, [n, 21, 3] and [n, 778, 3] are required"
        return [Finding("error", "shape", text)]
    findings = []
    if len(joints) != benchmark.num_samples:
        text = (
            f"{len(joints)} samples, {benchmark.name} has {benchmark.num_samples}: send one for "
            "each evaluation image, in the order of the list"
        )
        findings.append(Finding("error", "count", text))
    bad = np.union1d(not_finite(joints), not_finite(verts))
    if len(bad):
        text = (
            f"{len(bad)} samples hold NaN or infinity, the first {bad[:5].tolist()}: the "
            "evaluation stops at the first; send any finite hand instead"
        )
        findings.append(Finding("error", "not-finite", text))
        good = np.setdiff1d(np.arange(len(joints)), bad)
        joints, verts = joints[good], verts[good]
        true_joints = None if true_joints is None else true_joints[good]
        if not len(good):
            return findings
    some = np.linspace(0, len(joints) - 1, min(len(joints), MOST_CHECKED)).astype(int)
    findings += _axes(joints, verts, benchmark)
    findings += _hands(joints[some].astype(np.float64), verts[some].astype(np.float64), benchmark)
    if true_joints is not None and len(true_joints) == len(joints):
        findings = [f for f in findings if f.name != "mirrored"] + _reflected(joints, true_joints)
    empty = ~verts.any(axis=(1, 2))
    if empty.any():
        text = (
            f"all vertices are zero in {empty.sum()} of {len(verts)} samples: right for a "
            "joints-only method, whose mesh metrics then mean nothing; otherwise the mesh was lost"
        )
        findings.append(Finding("warning", "zero-verts", text))
    if len(joints) > 1 and np.abs(joints - joints[0]).max() < 1e-6:
        text = f"all {len(joints)} samples have the same joints: the images made no difference"
        findings.append(Finding("warning", "constant", text))
    return findings


def _axes(
    joints: NDArray[np.floating], verts: NDArray[np.floating], benchmark: Benchmark
) -> list[Finding]:
    side, axes = (1, "OpenCV") if benchmark.axes == "opencv" else (-1, "OpenGL")
    behind = [(side * points[..., 2] < 0).all(axis=1) for points in (joints, verts)]
    counts, either = [int(b.sum()) for b in behind], behind[0] | behind[1]
    if not either.any():
        return []
    # HO-3D's own writer refuses a single one; FreiHAND's evaluation takes them as bad hands.
    hard = benchmark.axes == "opengl" or either.mean() > 0.5
    text = (
        f"behind the camera are all joints in {counts[0]} and all vertices in {counts[1]} of "
        f"{len(joints)} samples: {benchmark.name} requires {axes} axes, hands at z "
        f"{'>' if side > 0 else '<'} 0; multiply y and z by -1 if the axes are the other ones"
    )
    return [Finding("error" if hard else "warning", "behind-camera", text)]


def _hands(
    joints: NDArray[np.float64], verts: NDArray[np.float64], benchmark: Benchmark
) -> list[Finding]:
    """Findings about single hands; `joints` and `verts` are a part of the set."""
    findings = []
    spread = _spread(joints)
    if not spread.any():
        text = "all joints of a hand lie in one point: is anything predicted?"
        return [Finding("warning", "collapsed", text)]
    joints, verts, spread = joints[spread > 0], verts[spread > 0], spread[spread > 0]
    has_verts = _spread(verts) > 0
    per_metre = _per_metre(spread)
    parts = [("joints", spread), ("vertices", _spread(verts[has_verts]))]
    for what, values in parts:
        if len(values) and _per_metre(values) != 1:
            findings.append(_unit_finding(what, values))
    joints = joints / per_metre
    wrist, root = (joints[:, benchmark.joint_names.index(n)] for n in ("wrist", "middle_1"))
    order, found = _order(joints, benchmark)
    findings += found
    if order is not None and not found:
        findings += _side(joints[:, KNOWN_ORDERS[order]])
    if min(np.abs(wrist).max(), np.abs(root).max()) < 1e-6:
        text = (
            "the wrist or the middle knuckle is at the origin in every sample: unaligned metrics "
            "compare absolute camera coordinates; add the root translation, or quote aligned ones"
        )
        findings.append(Finding("warning", "root-relative", text))
    else:
        depth = float(np.median(np.abs(joints[..., 2].mean(axis=1))))
        if not DEPTH_M[0] <= depth <= DEPTH_M[1]:
            text = (
                f"hands are {depth:.2f} m from the camera by their median, expected "
                f"{DEPTH_M[0]} to {DEPTH_M[1]} m: unaligned metrics need the true root translation"
            )
            findings.append(Finding("warning", "depth", text))
    if has_verts.any():
        verts = verts[has_verts] / _per_metre(parts[1][1])
        findings += _mesh(joints[has_verts], verts, order)
    return findings


def _spread(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(points.var(axis=1).sum(axis=1))


def _per_metre(spread: NDArray[np.float64]) -> float:
    """How many of the numbers' units make a metre, by the size of the hands."""
    middle = float(np.median(spread))
    for factor in UNITS.values():
        if SPREAD_M[0] * factor < middle <= SPREAD_M[1] * factor:
            return factor
    return middle / 0.055


def _unit_finding(what: str, spread: NDArray[np.float64]) -> Finding:
    factor = _per_metre(spread)
    names = {value: name for name, value in UNITS.items()}
    guess = (
        f"they look like {names[factor]}, divide by {factor:.0f}"
        if factor in names
        else "they look normalised, by a bone or a box: undo that"
    )
    text = (
        f"the {what} of a hand lie {np.median(spread):.3g} from their centre, of a true hand some "
        f"0.055 m, and metres are required: {guess}"
    )
    return Finding("error", "unit", text)


def _order(joints_m: NDArray[np.float64], benchmark: Benchmark) -> tuple[str | None, list[Finding]]:
    """The known order whose bones have a hand's proportions best, None if none has them, and what
    to say of it.

    Proportions, not only the total length of the bones: tip and base of a closed finger are near
    each other, so the total confuses InterHand's reversed fingers with the right ones.
    """
    misfits = {}
    for name, order in KNOWN_ORDERS.items():
        ends = joints_m[:, order][:, np.array(BONES)]  # [n, bones, 2, 3]
        length = np.linalg.norm(ends[:, :, 0] - ends[:, :, 1], axis=2)
        ratio = np.log(np.maximum(length, 1e-4) / BONE_MM)
        misfits[name] = float(np.abs(ratio - np.median(ratio, axis=1, keepdims=True)).mean())
    best, claimed = min(misfits, key=misfits.__getitem__), misfits[benchmark.skeleton]
    if claimed > MISFIT_MARGIN * misfits[best] and misfits[best] < MISFIT_LIMIT:
        text = (
            f"the bones have a hand's proportions in the order '{best}', not in "
            f"'{benchmark.skeleton}' that {benchmark.name} requires: reorder the joints"
        )
        return best, [Finding("error", "joint-order", text)]
    if claimed > MISFIT_LIMIT:
        text = (
            "the bones have a hand's proportions in no known joint order: an order of its own, or "
            "very bad joints"
        )
        return None, [Finding("warning", "bone-lengths", text)]
    return benchmark.skeleton, []


def _side(joints_m: NDArray[np.float64]) -> list[Finding]:
    """[n, 21, 3] canonical joints of hands that must be right ones."""
    share = 1 - right_hand_share(joints_m)
    if len(joints_m) < FEWEST_SIDED or share < BEND_SHARE:
        return []
    return [_mirrored(f"{share:.0%} of the hands bend like mirror images of right hands")]


def _reflected(joints: Points, true_joints: Points) -> list[Finding]:
    """Predictions that fit the ground truth far better when they are mirrored."""
    pair = (torch.from_numpy(as_numpy(a).astype(np.float64)) for a in (joints, true_joints))
    share = float(mirrored(*pair).double().mean())
    if share < MIRRORED_SHARE:
        return []
    return [
        _mirrored(f"{share:.0%} of the {len(joints)} hands are mirror images of the ground truth")
    ]


def _mirrored(what: str) -> Finding:
    text = (
        f"{what}: the alignment of the official scores allows reflections and hides it; negate one "
        "axis, x for a hand that was predicted from a mirrored image"
    )
    return Finding("warning", "mirrored", text)


def _mesh(
    joints_m: NDArray[np.float64], verts_m: NDArray[np.float64], order: str | None
) -> list[Finding]:
    nearest, _ = nearest_distances_m(torch.from_numpy(joints_m), torch.from_numpy(verts_m))
    distance = float(nearest.mean(dim=1).median())
    if distance > OFF_VERTS_M:
        text = (
            f"joints lie {distance * 1e3:.0f} mm from the nearest vertex on average, on a hand "
            "about 10: joints and vertices must share axes, unit and origin"
        )
        return [Finding("error", "joints-off-verts", text)]
    if order is None:
        return []
    tips = joints_m[:, KNOWN_ORDERS[order][4::4]] - verts_m[:, FINGERTIP_VERTS["freihand"]]
    distance = float(np.median(np.linalg.norm(tips, axis=2).mean(axis=1)))
    if distance > OFF_TIPS_M:
        text = (
            f"fingertip vertices lie {distance * 1e3:.0f} mm from the fingertips: vertices are "
            "required in MANO's order, of the hand that the joints are of"
        )
        return [Finding("warning", "verts-order", text)]
    return []
