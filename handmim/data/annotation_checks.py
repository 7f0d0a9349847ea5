"""What the numbers of a keypoint file mean: sizes, units, order, axes, sides, cameras, copies."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmim.data import label_checks as checks
from handmim.data.annotations import FORM, Annotations, Hand, Row
from handmim.data.samples import MIN_SIDE_PX
from handmim.hand.conventions import mirror_points, project_px
from handmim.images.decode import image_heads
from handmim.utils.findings import Level, Notes, level_of

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEW_OUTSIDE, MANY_OUTSIDE = 0.02, 0.3  # shares of labelled keypoints
# A hand of pixels cannot lie within 1.5 px of the corner; normalised ones may pass 1 a little.
NORMALISED_PX = 1.5
PERCENT, PERCENT_REACH, LARGE_PX = 100.0, 80.0, 200.0
# Photos of hands of different people reach 0.8 to 1.2 of the image (99 % quantile).
ENLARGED = 0.6
AGREES, OPPOSES = 0.3, -0.5  # correlation of 3D with 2D: 0.93 to 0.99 in labels of detectors
ROTATED = 5  # EXIF orientations from which on width and height are exchanged
HAND_M = (0.01, 2.0)  # size of any hand
BOX_SLACK = 0.25  # of the box's longer side; a corner instead of the size makes it larger
FEWEST_POINTS = 3  # keypoints from which on two hands are not the same by chance
OFF_SHARE = 0.2  # of the keypoints' extent
# Hands of six public sets point up (55 to 100 %, by less than 45 degrees) or in all directions.
SHOW_BACKS, POINT_AWAY = 0.6, 0.7
RESIZED = "images have another size than the file states"
RESIZED_FIX = "were they resized after labelling? scale the keypoints, correct width and height"
UNROTATED = "images were labelled without their EXIF rotation"
UNROTATED_FIX = "images are read upright: rotate the keypoints, or store the images without EXIF"


def check_annotations(annotations: Annotations, root: Path, notes: Notes) -> None:
    """Note what is wrong or odd about the well-formed labels of a file; `root` has its images."""
    hands, images = annotations.hands, annotations.images
    if not hands:
        notes.error("file", "no annotation holds a hand", "see the other findings")
        return
    counts = Counter(image["file_name"] for image in images)
    twice = [name for name, num in counts.items() if num > 1]  # or images labelled twice
    fix = "were two folders joined, whose images share names? then labels are on wrong images"
    text = "files stand under several image ids"
    notes.count(twice, len(counts), "names", text, fix, bad="warning")
    values = np.stack([hand.keypoints for hand in hands])
    points, seen = values[..., :2], values[..., 2] > 0
    _check_entries(notes, annotations, values)
    rows = [hand.image for hand in hands]
    used = sorted(set(rows))
    heads = np.zeros((len(images), 3), np.int64)
    heads[used] = image_heads([root / images[i]["file_name"] for i in used])
    stored = heads[:, :2].astype(np.float64)
    upright = np.where(heads[:, 2:] >= ROTATED, stored[:, ::-1], stored)
    _check_sizes(notes, [images[i] for i in used], stored[used], upright[used])
    if not seen.any():
        text = f"no keypoint of {len(hands)} hands is labelled (visibility > 0)"
        notes.error("2d", text, "keypoints are x, y, visibility; 2 is visible")
        return
    far = np.where(seen[..., None], np.abs(points), 0.0).max(axis=(1, 2))
    tiny = [hands[i].entry for i in np.flatnonzero((far <= NORMALISED_PX) & (seen.sum(axis=1) > 1))]
    text = f"hands lie within {NORMALISED_PX} px of the corner, as normalised keypoints do"
    fix = "keypoints are in pixels: multiply x by the image's width and y by its height"
    notes.count(tiny, len(hands), "normalised", text, fix)
    known = upright[rows, 0] > 0
    if not tiny and known.any():
        _check_2d(notes, points[known], seen[known], stored[rows][known], upright[rows][known])
    _check_cameras(notes, hands)
    whole = seen.all(axis=1)
    if not notes.failed("normalised", "swapped"):
        if whole.any():
            checks.settle_order(notes, points[whole], "canonical", "keypoints")
        if all(hand.joints is None for hand in hands):
            is_right = np.array([hand.is_right for hand in hands])
            _check_view(notes, points[whole], is_right[whole])
    _check_3d(notes, hands)


def _check_entries(notes: Notes, annotations: Annotations, values: Array) -> None:
    hands, seen = annotations.hands, values[..., 2] > 0
    copies, firsts = [], defaultdict[bytes, dict[str, str]](dict)
    for hand, num in zip(hands, seen.sum(axis=1), strict=True):
        if num >= FEWEST_POINTS:
            first = firsts[hand.keypoints.tobytes()]  # by file
            name = annotations.images[hand.image]["file_name"]
            copies += [hand.entry] if name in first else []
            first.setdefault(name, hand.entry)
    groups = [list(first.values()) for first in firsts.values() if len(first) > 1]
    most = max(map(len, groups), default=0)
    bad: Level = "error" if most >= checks.FEWEST_SIDED and most > len(hands) / 2 else "warning"
    boxes = np.stack([np.full(4, np.nan) if hand.box is None else hand.box for hand in hands])
    low, side = boxes[:, None, :2], boxes[:, None, 2:]
    slack, points = side.max(axis=2, keepdims=True) * BOX_SLACK, values[..., :2]
    is_far = ((points < low - slack) | (points > low + side + slack)).any(axis=2) & seen
    is_beside = (side > NORMALISED_PX).all(axis=(1, 2))
    is_beside &= is_far.sum(axis=1) > 0.5 * seen.sum(axis=1)
    is_odd = ~np.isin(values[..., 2], (0, 1, 2)).all(axis=1)
    num, entries = len(hands), np.array([hand.entry for hand in hands])
    text = "hands repeat another hand of their image"
    notes.count(copies, num, "copies", text, "take the copies out", bad="warning")
    text = f"hands have the same keypoints as a hand of another image, up to {most} images alike"
    fix = "give every image its own labels; fine for copies of one image"
    notes.count([e for group in groups for e in group], num, "repeated", text, fix, bad=bad)
    text = "hands have a visibility other than 0, 1 and 2: all above 0 count as labelled"
    fix = "give confidences as keypoint_scores, and 0 where a keypoint is not to be used"
    notes.count(entries[is_odd].tolist(), num, "visibility", text, fix, bad="warning")
    text = "hands lie outside of their own bbox (x, y, width, height)"
    fix = "are keypoints relative to their crop, or of another image?"
    notes.count(entries[is_beside].tolist(), num, "box", text, fix, bad="warning")


def _check_sizes(notes: Notes, images: list[Row], stored: Array, upright: Array) -> None:
    num, names = len(images), [image["file_name"] for image in images]
    is_readable = stored[:, 0] > 0
    unreadable = [names[i] for i in np.flatnonzero(~is_readable)]
    fix = "take them out of the annotations, or copy them again"
    bad: Level = "warning" if is_readable.any() else "error"
    notes.count(unreadable, num, "decode", "images with hands cannot be read", fix, bad=bad)
    given = np.array([[image.get(key) or 0 for key in ("width", "height")] for image in images])
    given = np.where(given > 0, given, upright)
    differs = is_readable & (given != upright).any(axis=1)
    is_unrotated = differs & (given == stored).all(axis=1)
    for name, odd, text, fix in (
        ("size", differs & ~is_unrotated, RESIZED, RESIZED_FIX),
        ("exif", is_unrotated, UNROTATED, UNROTATED_FIX),
    ):
        found = [
            f"{names[i]} ({given[i, 0]:g} x {given[i, 1]:g}, the image has {upright[i, 0]:g} x "
            f"{upright[i, 1]:g})"
            for i in np.flatnonzero(odd)
        ]
        notes.count(found, num, name, text, fix, bad=level_of(len(found), num))


def _check_2d(notes: Notes, points: Array, seen: Mask, stored: Array, size: Array) -> None:

    def outside(points: Array, size: Array) -> float:
        out = ((points < 0) | (points > size[:, None])).any(axis=2) & seen
        return float(out.sum() / max(1, seen.sum()))

    share, swapped = outside(points, size), outside(points[..., ::-1], size)
    unrotated = outside(points, stored)
    name, fix = "outside", "keypoints are x, y in pixels of the stored image, from its top left"
    bad: Level = "warning" if share <= MANY_OUTSIDE else "error"
    if share > FEW_OUTSIDE and unrotated <= share / 4:
        name, bad = "exif", "error"
        fix = f"without EXIF rotation {unrotated:.1%} do: images are read upright, rotate keypoints"
    elif share > FEW_OUTSIDE and swapped <= share / 4:
        name, bad = "swapped", "error" if len(points) >= checks.FEWEST else "warning"
        fix = f"with x and y exchanged {swapped:.1%} do: keypoints are x, y, visibility"
    text = f"{share:.1%} of the labelled keypoints lie outside of their images"
    notes.judge(share <= FEW_OUTSIDE, name, text, fix, bad=bad)
    if share <= FEW_OUTSIDE and len(points) >= checks.FEWEST:
        # Percentages, and labels of smaller images, fill only the top left part of the images.
        far = np.quantile(points[seen], 0.99, axis=0)
        parts = np.quantile((points / size[:, None])[seen], 0.99, axis=0)
        is_large = np.median(size.min(axis=1)) >= LARGE_PX
        if is_large and (far <= PERCENT).all() and (far >= PERCENT_REACH).all():
            text = "all keypoints lie below 100 in larger images, as percentages do"
            fix = "keypoints are in pixels: multiply x by width / 100 and y by height / 100"
            notes.error("normalised", text, fix)
        elif (parts < ENLARGED).all():
            text = (
                f"keypoints fill only the top left {parts[0]:.0%} x {parts[1]:.0%} of their images"
            )
            fix = "were the images enlarged after labelling? scale the keypoints; padding is fine"
            notes.warning("reach", text, fix)
    spans = np.ptp(np.where(seen[..., None], points, points[:, :1]), axis=1).max(axis=1)
    small = int(((spans < MIN_SIDE_PX) & (seen.sum(axis=1) > 1)).sum())
    text = f"{small} of {len(points)} hands are smaller than {MIN_SIDE_PX:g} px"
    fix = "take them out: a crop shows a few pixels enlarged"
    notes.judge(not small, "small", text, fix, bad="warning")


def _check_cameras(notes: Notes, hands: Sequence[Hand]) -> None:
    cameras = [(hand, hand.K) for hand in hands if hand.K is not None]
    if not cameras:
        return
    good = checks.usable(np.stack([K for _, K in cameras]))
    odd = [hand.entry for (hand, _), is_good in zip(cameras, good, strict=True) if not is_good]
    form = "K is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in px, left out where it is not known"
    notes.count(odd, len(cameras), "k", "hands have a K that is no camera's", form)
    off = []
    for hand, K in [] if odd else cameras:
        if hand.joints is not None and (hand.keypoints[:, 2] > 0).any():
            both = (hand.keypoints[:, 2] > 0) & (hand.joints[:, 3] > 0)
            px, joints = hand.keypoints[both, :2], hand.joints[both, :3]
            is_near = len(px) > 0 and (joints[:, 2] > 0).all()
            if is_near:
                off_px = np.median(np.abs(project_px(joints, K) - px))
                is_near = off_px <= OFF_SHARE * np.ptp(px)
            off += [] if is_near else [hand.entry]
    text = "hands have a K that projects keypoints_3d elsewhere than keypoints"
    fix = "with a K, keypoints_3d are in the camera's coordinates; leave K out if they are not"
    notes.count(off, len(cameras), "projection", text, fix, "warning")


def _check_view(notes: Notes, points: Array, is_right: Mask) -> None:
    """Hands that are upside down or lie, seen from the back by their sides: exchanged axes?"""
    if len(points) < checks.FEWEST_SIDED or notes.failed("side", level="warning"):
        return
    index, middle, little = (points[:, k] - points[:, 0] for k in (5, 9, 17))
    cross = index[:, 0] * little[:, 1] - index[:, 1] * little[:, 0]
    backs = float(((cross > 0) == is_right).mean())
    down = float((middle[:, 1] > np.abs(middle[:, 0])).mean())
    left = float((-middle[:, 0] > np.abs(middle[:, 1])).mean())
    where, share = max(("down", down), ("left", left), key=lambda pair: pair[1])
    if backs > SHOW_BACKS and share > POINT_AWAY:
        text = f"{share:.0%} of the hands point {where} and {backs:.0%} show their backs in 2D"
        fix = "fine for hands seen so; else y runs up instead of down, or x and y are exchanged"
        notes.warning("view", text, fix)


def _check_3d(notes: Notes, hands: Sequence[Hand]) -> None:
    labelled = [(hand, hand.joints) for hand in hands if hand.joints is not None]
    text = f"{len(labelled)} of {len(hands)} hands have 3D keypoints"
    notes.ok("3d", text if labelled else "no 3D keypoints: 2D losses only")
    whole = [hand for hand, joints in labelled if (joints[:, 3] > 0).all()]
    if not whole:
        return
    where = "keypoints_3d"
    raw = np.stack([joints[:, :3] for _, joints in labelled if (joints[:, 3] > 0).all()])
    try:
        joints = checks.settle_unit(notes, raw, where)
    except ValueError as error:
        notes.error("unit", str(error), f"{where} are in metres: {FORM}")
        return
    extent = np.linalg.norm(np.ptp(joints, axis=1), axis=1)
    pairs = [(h.entry, m) for h, m in zip(whole, extent, strict=True)]
    odd = [f"{entry} ({m:.3g} m)" for entry, m in pairs if not HAND_M[0] <= m <= HAND_M[1]]
    if not notes.failed("unit"):
        fix = f"{where} are in metres: were files of several units joined? leave out empty ones"
        notes.count(odd, len(whole), "unit", f"hands have no hand's size in {where}", fix)
    joints = checks.settle_order(notes, joints, "canonical", where)
    if notes.failed("order"):
        return
    checks.note_bones(notes, joints, where)
    _check_axes(notes, joints, np.stack([hand.keypoints for hand in whole]))
    if not notes.failed("axes"):
        is_right = np.array([hand.is_right for hand in whole])[:, None, None]
        checks.note_side(notes, np.where(is_right, joints, mirror_points(joints)), where)


def _check_axes(notes: Notes, joints_m: Array, keypoints: Array) -> None:
    """x to the right and y down in 3D as in the image; the side checks z."""
    good = (keypoints[..., 2] > 0).all(axis=1)
    if not good.any():
        return
    flat, deep = (
        a - a.mean(axis=1, keepdims=True) for a in (keypoints[good, :, :2], joints_m[good])
    )
    norms = [np.sqrt((a**2).sum(axis=(0, 1))) for a in (flat, deep)]
    table = np.einsum("njx,njy->xy", flat, deep) / np.maximum(np.outer(*norms), 1e-12)
    x, y = table.diagonal()
    best = np.abs(table).argmax(axis=1)
    strongest = table[[0, 1], best]
    is_clear = bool((np.abs(strongest) > AGREES).all()) and best[0] != best[1]
    # a tilted hand's depth runs with the image too
    is_exchanged = is_clear and bool((np.abs(strongest) > np.abs((x, y)) + AGREES).any())
    fix = "keypoints_3d are x right, y down, z away from the camera"
    if best.tolist() == [1, 0] and is_clear and (strongest > 0).all():
        fix = "x and y are exchanged in keypoints or in keypoints_3d"
    elif is_clear:
        right, down = ("-" * bool(c < 0) + "xyz"[i] for c, i in zip(strongest, best, strict=True))
        fix += f"; of keypoints_3d {right} runs right and {down} runs down in the images"
    text = f"keypoints_3d run with the image: correlation {x:.2f} in x, {y:.2f} in y"
    bad: Level = "error" if min(x, y) < OPPOSES or is_exchanged else "warning"
    notes.judge(bool(min(x, y) > AGREES) and not is_exchanged, "axes", text, fix, bad=bad)
