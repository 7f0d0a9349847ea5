"""Submission files of FreiHAND and HO-3D: writing them, reading them back, and finding what is
wrong with one before a server or a table does."""

import lzma
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.label_checks import (
    FEWEST_SIDED,
    METRES,
    Array,
    diagonal_of,
    misfit,
    order_of,
    right_hand_share,
    unit_of,
)
from handmim.data.label_files import LONGEST_ENTRY_BYTES, NumberLists
from handmim.evaluation.benchmarks import (
    NUM_VERTS,
    Benchmark,
    JointsAndVerts,
    Points,
    as_hands,
    as_numpy,
    not_finite,
)
from handmim.hand.skeleton import FINGERTIP_VERTS, FOREIGN_ORDERS, NUM_JOINTS, SKELETONS
from handmim.metrics.pose import MIRRORED_SHARE, mirrored
from handmim.utils.files import atomic_path
from handmim.utils.findings import Finding, Notes, spread
from handmim.utils.json_files import rows_text

MEMBER = "pred.json"
# 799 points of three numbers of 17 digits, indented, have some 0.15 MB.
MB_PER_SAMPLE = 0.5
UNREADABLE_ZIP = (BadZipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError)
FORM = (
    f"a prediction is [joints, vertices], each one entry per sample of {NUM_JOINTS} and "
    f"{NUM_VERTS} points [x, y, z], zeros where a method has no vertices"
)
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
MIRROR_FIX = (
    "the alignment of the official scores allows reflections and hides it; negate one axis, x for "
    "a hand that was predicted from a mirrored image"
)


def write_submission(
    folder: str | Path, joints: Points, verts: Points, *, name: str = "pred"
) -> Path:
    """Write `<name>.json` = [joints, vertices] and `<name>.zip`, which is uploaded and returned.

    [n, 21, 3] and [n, 778, 3] metres in the benchmark's order and axes, rounded to 1e-7 m; the
    zip's only member is pred.json. Files appear when they are whole. Raises: as `as_hands`.
    """
    arrays = as_hands(joints, verts)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    targets = folder / f"{name}.json", folder / f"{name}.zip"
    # 800 points of three numbers of at most 30 characters
    large = len(arrays[0]) * 72_000 > 2**31
    with (
        atomic_path(targets[0]) as plain_file,
        atomic_path(targets[1]) as zip_file,
        plain_file.open("wb") as plain,
        ZipFile(zip_file, "w", ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(MEMBER, "w", force_zip64=large) as member,
    ):
        for text in _submission_text(*arrays):
            plain.write(text)
            member.write(text)
    return targets[1]


def _submission_text(*arrays: NDArray[np.floating]) -> Iterator[bytes]:
    for k, array in enumerate(arrays):
        for i, points in enumerate(array):
            yield (b"[[", b"],[")[k] if i == 0 else b","
            yield rows_text(points)
    yield b"]]"


def read_submission(
    path: str | Path, num_samples: int | None = None, mb_per_sample: float = MB_PER_SAMPLE
) -> JointsAndVerts:
    """Joints [n, 21, 3] and vertices [n, 778, 3] of a .json or the .zip around it, read in pieces.

    NaN is read; `check_submission` names it. `num_samples` bounds the size of the unpacked text.
    Raises: FileNotFoundError; ValueError for more text, or naming the entry of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no prediction file {path}")
    try:
        with ExitStack() as stack:
            size = path.stat().st_size
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            if path.suffix == ".zip":
                archive = stack.enter_context(ZipFile(file))
                member = _member(archive, path.name)
                size, file = member.file_size, stack.enter_context(archive.open(member))
            if num_samples is not None and size > num_samples * mb_per_sample * 1e6:
                text = f"{path.name} holds {size / 1e6:.1f} MB of text for {num_samples} samples"
                most = f"{mb_per_sample:g} MB per sample (predictions_mb_per_sample)"
                raise ValueError(f"{text}, at most {most} are read")
            return read_hands(file, path.name, size)
    except UNREADABLE_ZIP as error:
        raise ValueError(f"{path.name} is no zip archive, or a damaged one: {error}") from error
    except RuntimeError as error:  # encrypted, or packed by a method that Python does not know
        raise ValueError(f"{path.name} cannot be unpacked: {error}") from error


def _member(archive: ZipFile, name: str) -> ZipInfo:
    # macOS adds a folder of its own, which the evaluators never read.
    infos = [info for info in archive.infolist() if not info.filename.startswith("__MACOSX/")]
    flat = [i for i in infos if i.filename.endswith(".json") and "/" not in i.filename]
    named = [info for info in flat if info.filename == MEMBER]
    if named or len(flat) == 1:
        return (named or flat)[-1]
    found = [info.filename[:40] for info in infos[:5]]
    raise ValueError(f"{name} holds {found}, {MEMBER} alone is required, and in no folder")


def read_hands(file: IO[bytes], name: str, size: int) -> JointsAndVerts:
    """`read_submission` of a text of `size` bytes."""
    lists = NumberLists(file, name, FORM)
    first = lists.next_byte()
    if first != b"[":
        lists.fail(f"starts with {first.decode('latin-1')!r}")
    try:
        joints = list(lists.entries("joints", (NUM_JOINTS, 3)))
    except ValueError as error:
        if f"got {NUM_VERTS} x 3" in str(error):
            error.add_note("are the two lists swapped?")
        raise
    if not joints:
        lists.fail("holds no samples")
    if lists.next_byte() != b",":
        lists.fail("holds one list")
    if len(joints) * NUM_VERTS * len("[0,0,0],") > size + LONGEST_ENTRY_BYTES:
        lists.fail(f"holds joints of {len(joints)} samples and vertices of fewer")
    verts = np.empty((len(joints), NUM_VERTS, 3))
    count = 0
    for count, points in enumerate(lists.entries("vertices", (NUM_VERTS, 3)), start=1):
        if count <= len(joints):
            verts[count - 1] = points
    end = lists.next_byte()
    if end != b"]" or lists.next_byte():
        lists.fail("holds more than two lists" if end == b"," else "goes on after two lists")
    if count != len(joints):
        lists.fail(f"holds joints of {len(joints)} samples and vertices of {count}")
    return np.stack(joints), verts


def check_submission(
    joints: Points, verts: Points, benchmark: Benchmark, true_joints: Points | None = None
) -> list[Finding]:
    """What would be refused or score badly for a reason that has nothing to do with the method.

    Proportions, units and distances are checked in up to 500 samples spread over the set, all else
    in all. Arrays are as `write_submission` takes them; `true_joints` show single mirror images.
    """
    notes, joints, verts = Notes(), as_numpy(joints), as_numpy(verts)
    shapes = joints.shape[1:], verts.shape[1:]
    fits = shapes == ((NUM_JOINTS, 3), (NUM_VERTS, 3)) and len(joints) == len(verts) > 0
    if not fits or not {joints.dtype.kind, verts.dtype.kind} <= set("fiu"):
        came = f"joints are {joints.shape} and vertices {verts.shape}"
        notes.error("shape", f"{came}, [n, 21, 3] and [n, 778, 3] are required")
        return notes.findings
    if (num := len(joints)) != (expected := benchmark.num_samples):
        text = f"{num} samples, {benchmark.name} has {expected}: send one for each evaluation image"
        notes.error("count", f"{text}, in the order of the list")
    bad = np.union1d(not_finite(joints), not_finite(verts))
    if len(bad):
        text = f"{len(bad)} samples hold NaN or infinity, the first {bad[:5].tolist()}"
        notes.error("not-finite", f"{text}: the evaluation stops there; send any finite hand")
        good = np.setdiff1d(np.arange(num), bad)
        joints, verts = joints[good], verts[good]
        true_joints = None if true_joints is None else true_joints[good]
        if not len(good):
            return notes.findings
    num, (side, axes) = len(joints), (1, "OpenCV") if benchmark.axes == "opencv" else (-1, "OpenGL")
    behind = [(side * points[..., 2] < 0).all(axis=1) for points in (joints, verts)]
    if (either := behind[0] | behind[1]).any():
        text = f"behind the camera are all joints in {behind[0].sum()} and all vertices in "
        text += f"{behind[1].sum()} of {num} samples: {benchmark.name} requires {axes} axes, hands "
        text += f"at z {'>' if side > 0 else '<'} 0; multiply y and z by -1 if they are the others"
        # HO-3D's own writer refuses a single one; FreiHAND's evaluation takes them as bad hands.
        is_hard = side < 0 or either.mean() > 0.5
        notes.judge(False, "behind-camera", text, bad="error" if is_hard else "warning")
    some = spread(num, 500)
    knows_truth = true_joints is not None and len(true_joints) == num
    part = joints[some].astype(np.float64), verts[some].astype(np.float64)
    _check_hands(notes, part, benchmark, checks_side=not knows_truth)
    if true_joints is not None and knows_truth:
        pair = (torch.from_numpy(as_numpy(a).astype(np.float64)) for a in (joints, true_joints))
        share = float(mirrored(*pair).double().mean())
        if share >= MIRRORED_SHARE:
            text = f"{share:.0%} of the {num} hands are mirror images of the ground truth"
            notes.warning("mirrored", f"{text}: {MIRROR_FIX}")
    empty = ~verts.any(axis=(1, 2))
    if empty.any():
        text = f"all vertices are zero in {empty.sum()} of {num} samples: right for a joints-only "
        notes.warning("zero-verts", f"{text}method, whose mesh metrics then mean nothing")
    if num > 1 and np.abs(joints - joints[0]).max() < 1e-6:
        notes.warning("constant", f"all {num} samples have the same joints, whatever the image")
    return notes.findings


def _check_hands(
    notes: Notes, part: tuple[Array, Array], benchmark: Benchmark, checks_side: bool
) -> None:
    """Check single hands of a part of the set."""
    joints, verts = part
    is_hand, has_verts = (np.ptp(points, axis=1).any(axis=1) for points in part)
    if not is_hand.any():
        notes.warning("collapsed", "all joints of a hand lie in one point: is anything predicted?")
        return
    has_verts, verts = has_verts[is_hand], verts[is_hand & has_verts]
    joints, _ = _in_metres(notes, joints[is_hand], "joints")
    claimed, order = benchmark.skeleton, order_of(joints, benchmark.skeleton, KNOWN_ORDERS)
    canonical = joints[:, KNOWN_ORDERS[order]]
    is_known = misfit(canonical) <= MISFIT_LIMIT
    if not is_known:
        text = "the bones have a hand's proportions in no known joint order: an order of its own, "
        notes.warning("bone-lengths", f"{text}or very bad joints")
    elif order != claimed:
        text = f"the bones have a hand's proportions in the order '{order}', not in '{claimed}' "
        notes.error("joint-order", f"{text}that {benchmark.name} requires: reorder the joints")
    elif checks_side and len(joints) >= FEWEST_SIDED:
        share = 1 - right_hand_share(canonical)
        if share >= BEND_SHARE:
            text = f"{share:.0%} of the hands bend like mirror images of right hands"
            notes.warning("mirrored", f"{text}: {MIRROR_FIX}")
    wrist, root = (joints[:, benchmark.joint_names.index(n)] for n in ("wrist", "middle_1"))
    depth = float(np.median(np.abs(joints[..., 2].mean(axis=1))))
    if min(np.abs(wrist).max(), np.abs(root).max()) < 1e-6:
        text = "the wrist or the middle knuckle is at the origin in every sample: unaligned "
        text += "metrics require the root translation, aligned ones do not"
        notes.warning("root-relative", text)
    elif not DEPTH_M[0] <= depth <= DEPTH_M[1]:
        text = f"hands are {depth:.2f} m from the camera by their median, expected {DEPTH_M[0]} to "
        text += f"{DEPTH_M[1]} m: unaligned metrics need the true root translation"
        notes.warning("depth", text)
    if not has_verts.any():
        return
    verts, has_unit = _in_metres(notes, verts, "vertices")
    if not has_unit:
        return
    joints, canonical = joints[has_verts], canonical[has_verts]
    parts = (torch.from_numpy(points).split(64) for points in (joints, verts))
    nearest = [torch.cdist(*part).amin(dim=2) for part in zip(*parts, strict=True)]
    distance = float(torch.cat(nearest).mean(dim=1).median())
    if distance > OFF_VERTS_M:
        text = f"joints lie {distance * 1e3:.0f} mm from the nearest vertex on average, on a hand "
        text += "about 10: joints and vertices must share axes, unit and origin"
        notes.error("joints-off-verts", text)
    elif is_known:
        tips = canonical[:, 4::4] - verts[:, FINGERTIP_VERTS["freihand"]]
        distance = float(np.median(np.linalg.norm(tips, axis=2).mean(axis=1)))
        if distance > OFF_TIPS_M:
            text = f"fingertip vertices lie {distance * 1e3:.0f} mm from the fingertips: MANO's "
            notes.warning("verts-order", f"{text}order is required, of the hand of the joints")


def _in_metres(notes: Notes, points: Array, what: str) -> tuple[Array, bool]:
    """Points scaled to metres, and whether they were in a known unit."""
    unit, size = unit_of(points), diagonal_of(points)
    guess = "they look normalised, by a bone or a box: undo that"
    if unit is not None:
        guess = f"they look like {UNIT_NAMES[unit]}, divide by {1 / METRES[unit]:.0f}"
    if unit != "m":
        text = f"the box around the {what} of a hand has a diagonal of {size:.3g}, of a true hand "
        notes.error("unit", f"{text}some {TYPICAL_M} m, and metres are required: {guess}")
    return points * (TYPICAL_M / size if unit is None else METRES[unit]), unit is not None
