"""What the numbers of a keypoint file mean: sizes, units, order, axes, sides, cameras, copies."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmim.data.annotations import FORM, Annotations, Hand, Row
from handmim.data.label_checks import (
    FEWEST,
    FEWEST_SIDED,
    note_bones,
    note_side,
    settle_order,
    settle_unit,
    usable,
)
from handmim.data.samples import MIN_SIDE_PX
from handmim.hand.conventions import mirror_points, project_px
from handmim.images.decode import image_heads
from handmim.utils.findings import Level, Notes, level_of, shown

Array = NDArray[np.float64]

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
RESIZED = (
    "have another size than the file states",
    "were they resized after labelling? take the originals, or scale the keypoints and correct "
    "width and height",
)
UNROTATED = (
    "were labelled without their EXIF rotation",
    "images are read upright: rotate the keypoints, or store the images without EXIF",
)
# Oddities of single hands, and what to do about them.
ODD = {
    "copies": ("repeat another hand of their image", "take the copies out"),
    "visibility": (
        "have a visibility other than 0, 1 and 2: all above 0 count as labelled",
        "give confidences as keypoint_scores, and 0 where a keypoint is not to be used",
    ),
    "box": (
        "lie outside of their own bbox (x, y, width, height)",
        "are keypoints relative to their crop, or of another image?",
    ),
}


def check_annotations(annotations: Annotations, root: Path, notes: Notes) -> None:
    """Note what is wrong or odd about the well-formed labels of a file; `root` has its images."""
    hands, images = annotations.hands, annotations.images
    if not hands:
        notes.error("file", "no annotation holds a hand", "see the other findings")
        return
    counts = Counter(image["file_name"] for image in images)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:  # two photos of one name, or photos labelled twice
        text = f"{len(twice)} files stand under several image ids: {shown(twice)}"
        fix = "were two folders joined, whose images share names? then labels are on wrong images"
        notes.warning("names", text, fix)
    _check_entries(notes, annotations)
    used = sorted({hand.image for hand in hands})
    heads = np.zeros((len(images), 3), np.int64)
    heads[used] = image_heads([root / images[i]["file_name"] for i in used])
    stored = heads[:, :2].astype(np.float64)
    upright = np.where(heads[:, 2:] >= ROTATED, stored[:, ::-1], stored)
    _check_sizes(notes, [images[i] for i in used], stored[used], upright[used])
    values = np.stack([hand.keypoints for hand in hands])
    if not (values[..., 2] > 0).any():
        text = f"no keypoint of {len(hands)} hands is labelled (visibility > 0)"
        notes.error("2d", text, "keypoints are x, y, visibility; 2 is visible")
        return
    rows = [hand.image for hand in hands]
    _check_2d(notes, hands, values, stored[rows], upright[rows])
    _check_cameras(notes, hands)
    if not notes.failed("normalised", "swapped"):
        whole = (values[..., 2] > 0).all(axis=1)
        if whole.any():
            settle_order(notes, values[whole][..., :2], "canonical", "keypoints")
        if all(hand.joints is None for hand in hands):
            is_right = np.array([hand.is_right for hand in hands])
            _check_view(notes, values[whole][..., :2], is_right[whole])
    _check_3d(notes, hands)


def _check_entries(notes: Notes, annotations: Annotations) -> None:
    """Copies in one image or several, confidences as visibilities, keypoints beside their box."""
    hands, seen = annotations.hands, set()
    odd: dict[str, list[str]] = {name: [] for name in ODD}
    images_of: defaultdict[bytes, dict[str, str]] = defaultdict(dict)
    for hand in hands:
        points = hand.keypoints[hand.keypoints[:, 2] > 0]
        if not len(points):
            continue
        key = (annotations.images[hand.image]["file_name"], points.tobytes())
        if key in seen:
            odd["copies"].append(hand.entry)
        seen.add(key)
        if len(points) >= FEWEST_POINTS:
            images_of[key[1]].setdefault(key[0], hand.entry)
        if not np.isin(points[:, 2], (1, 2)).all():
            odd["visibility"].append(hand.entry)
        if hand.box is not None and _is_beside(points[:, :2], hand.box):
            odd["box"].append(hand.entry)
    for name, (what, fix) in ODD.items():
        if odd[name]:
            text = f"{len(odd[name])} of {len(hands)} hands {what}: {shown(odd[name])}"
            notes.warning(name, text, fix)
    repeated = [entry for same in images_of.values() if len(same) > 1 for entry in same.values()]
    most = max(map(len, images_of.values()), default=0)
    text = f"{len(repeated)} of {len(hands)} hands have the same keypoints as a hand of another "
    text += f"image, up to {most} images alike: {shown(repeated)}"
    fix = "give every image its own labels; fine for copies of one image"
    bad: Level = "error" if most >= FEWEST_SIDED and most > len(hands) / 2 else "warning"
    notes.judge(not repeated, "repeated", text, fix, bad=bad)


def _is_beside(points_px: Array, box_px: Array) -> bool:
    low, side = box_px[:2], box_px[2:]
    if not (side > NORMALISED_PX).all():
        return False
    slack = side.max() * BOX_SLACK
    far = (points_px < low - slack) | (points_px > low + side + slack)
    return bool(far.any(axis=1).mean() > 0.5)


def _check_sizes(notes: Notes, images: list[Row], stored: Array, upright: Array) -> None:
    """Stated sizes against those of the files [n, 2], with and without EXIF rotation."""
    num, names = len(images), [image["file_name"] for image in images]
    is_readable = stored[:, 0] > 0
    if not is_readable.all():
        bad: Level = "warning" if is_readable.any() else "error"
        unreadable = [names[i] for i in np.flatnonzero(~is_readable)]
        text = f"{len(unreadable)} of {num} images with hands cannot be read: {shown(unreadable)}"
        fix = "take them out of the annotations, or copy them again"
        notes.judge(False, "decode", text, fix, bad=bad)
    given = np.array([[image.get(key) or 0 for key in ("width", "height")] for image in images])
    given = np.where(given > 0, given, upright)
    differs = is_readable & (given != upright).any(axis=1)
    is_unrotated = differs & (given == stored).all(axis=1)
    for name, odd, (what, fix) in (
        ("size", differs & ~is_unrotated, RESIZED),
        ("exif", is_unrotated, UNROTATED),
    ):
        found = [
            f"{names[i]} ({given[i, 0]:g} x {given[i, 1]:g}, the image has {upright[i, 0]:g} x "
            f"{upright[i, 1]:g})"
            for i in np.flatnonzero(odd)
        ]
        text = f"{len(found)} of {num} images {what}: {shown(found)}"
        notes.judge(not found, name, text, fix, bad=level_of(len(found), num))


def _check_2d(
    notes: Notes, hands: Sequence[Hand], values: Array, stored: Array, size: Array
) -> None:
    """Keypoints against the stored and upright sizes [n, 2] of their images, 0 where unknown."""
    seen, points = values[..., 2] > 0, values[..., :2]
    far = np.where(seen[..., None], np.abs(points), 0.0).max(axis=(1, 2))
    tiny = np.flatnonzero((far <= NORMALISED_PX) & (seen.sum(axis=1) > 1))
    if len(tiny):
        text = f"keypoints of {len(tiny)} of {len(hands)} hands lie within {NORMALISED_PX} px of "
        text += f"the corner, as normalised ones do: {shown([hands[int(i)].entry for i in tiny])}"
        fix = "keypoints are in pixels: multiply x by the image's width and y by its height"
        notes.error("normalised", text, fix)
        return
    known = size[:, 0] > 0
    if not known.any():
        return
    points, seen, stored, size = points[known], seen[known], stored[known], size[known]

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
        name, bad = "swapped", "error" if len(points) >= FEWEST else "warning"
        fix = f"with x and y exchanged {swapped:.1%} do: keypoints are x, y, visibility"
    text = f"{share:.1%} of the labelled keypoints lie outside of their images"
    notes.judge(share <= FEW_OUTSIDE, name, text, fix, bad=bad)
    if share <= FEW_OUTSIDE and len(points) >= FEWEST:
        _check_reach(notes, points, seen, size)
    spans = np.ptp(np.where(seen[..., None], points, points[:, :1]), axis=1).max(axis=1)
    small = int(((spans < MIN_SIDE_PX) & (seen.sum(axis=1) > 1)).sum())
    if small:
        text = f"{small} of {len(points)} hands are smaller than {MIN_SIDE_PX:g} px"
        notes.warning("small", text, "take them out: a crop shows a few pixels enlarged")


def _check_reach(notes: Notes, points: Array, seen: NDArray[np.bool_], size: Array) -> None:
    """Percentages, and labels of smaller images, fill only the top left part of the images."""
    far = np.quantile(points[seen], 0.99, axis=0)
    parts = np.quantile((points / size[:, None])[seen], 0.99, axis=0)
    is_large = np.median(size.min(axis=1)) >= LARGE_PX
    if is_large and (far <= PERCENT).all() and (far >= PERCENT_REACH).all():
        text = "all keypoints lie below 100 in larger images, as percentages do"
        fix = "keypoints are in pixels: multiply x by width / 100 and y by height / 100"
        notes.error("normalised", text, fix)
    elif (parts < ENLARGED).all():
        text = f"keypoints fill only {parts[0]:.0%} of the width and {parts[1]:.0%} of the height "
        fix = "were the images enlarged after labelling? scale the keypoints; padded images are "
        notes.warning("reach", f"{text}of their images, from the top left", f"{fix}fine")


def _check_cameras(notes: Notes, hands: Sequence[Hand]) -> None:
    """Whether K is a camera's, and projects the 3D keypoints onto the 2D ones."""
    cameras = [(hand, hand.K) for hand in hands if hand.K is not None]
    if not cameras:
        return
    good = usable(np.stack([K for _, K in cameras]))
    odd = [hand.entry for (hand, _), is_good in zip(cameras, good, strict=True) if not is_good]
    form = "K is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in px, left out where it is not known"
    text = f"K of {len(odd)} of {len(cameras)} hands is no camera's: {shown(odd)}"
    notes.judge(not odd, "k", text, form)
    off = [] if odd else [hand.entry for hand, K in cameras if _projects_elsewhere(hand, K)]
    if off:
        text = f"K projects keypoints_3d of {len(off)} of {len(cameras)} hands elsewhere than "
        fix = "with a K, keypoints_3d are in the camera's coordinates; leave K out if they are not"
        notes.warning("projection", f"{text}keypoints: {shown(off)}", fix)


def _projects_elsewhere(hand: Hand, K_px: Array) -> bool:
    seen = hand.keypoints[:, 2] > 0
    if hand.joints is None or hand.joints_valid is None or not seen.any():
        return False
    both = seen & hand.joints_valid
    points, joints = hand.keypoints[both, :2], hand.joints[both]
    if not len(points) or not (joints[:, 2] > 0).all():
        return True
    miss_px = np.median(np.abs(project_px(joints, K_px) - points))
    return bool(miss_px > OFF_SHARE * np.ptp(points))


def _check_view(notes: Notes, points: Array, is_right: NDArray[np.bool_]) -> None:
    """Hands that are upside down or lie, seen from the back by their sides: exchanged axes?"""
    if len(points) < FEWEST_SIDED or notes.failed("side", level="warning"):
        return
    index, middle, little = (points[:, k] - points[:, 0] for k in (5, 9, 17))
    cross = index[:, 0] * little[:, 1] - index[:, 1] * little[:, 0]
    backs = float(((cross > 0) == is_right).mean())
    down = float((middle[:, 1] > np.abs(middle[:, 0])).mean())
    left = float((-middle[:, 0] > np.abs(middle[:, 1])).mean())
    where, share = max(("down", down), ("left", left), key=lambda pair: pair[1])
    if backs > SHOW_BACKS and share > POINT_AWAY:
        text = f"{share:.0%} of the hands point {where} and {backs:.0%} show their backs, by their "
        text += "sides and 2D keypoints alone"
        fix = "fine for hands seen so; else y runs up instead of down, or x and y are exchanged"
        notes.warning("view", text, fix)


def _check_3d(notes: Notes, hands: Sequence[Hand]) -> None:
    whole = [h for h in hands if h.joints_valid is not None and h.joints_valid.all()]
    num = sum(hand.joints is not None for hand in hands)
    text = f"{num} of {len(hands)} hands have 3D keypoints" if num else "no 3D keypoints"
    notes.ok("3d", text + ("" if num else ": 2D losses only"))
    if not whole:
        return
    where = "keypoints_3d"
    raw = np.stack([hand.joints for hand in whole if hand.joints is not None])
    try:
        joints = settle_unit(notes, raw, where)
    except ValueError as error:
        notes.error("unit", str(error), f"{where} are in metres: {FORM}")
        return
    extent = np.linalg.norm(np.ptp(joints, axis=1), axis=1)
    pairs = [(h.entry, m) for h, m in zip(whole, extent, strict=True)]
    odd = [f"{entry} ({m:.3g} m)" for entry, m in pairs if not HAND_M[0] <= m <= HAND_M[1]]
    if odd and not notes.failed("unit"):
        fix = f"{where} are in metres: were files of several units joined? leave out empty ones"
        text = f"{len(odd)} of {len(whole)} hands have no hand's size in {where}: {shown(odd)}"
        notes.error("unit", text, fix)
    joints = settle_order(notes, joints, "canonical", where)
    if notes.failed("order"):
        return
    note_bones(notes, joints, where)
    _check_axes(notes, joints, np.stack([hand.keypoints for hand in whole]))
    if not notes.failed("axes"):
        is_right = np.array([hand.is_right for hand in whole])[:, None, None]
        note_side(notes, np.where(is_right, joints, mirror_points(joints)), where)


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
