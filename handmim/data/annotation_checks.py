"""What the numbers of an annotation file mean: file sizes, units, order, axes, sides."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmim.data.annotation_fields import FORM
from handmim.data.annotation_hands import NORMALISED_PX, check_cameras, check_entries, check_view
from handmim.data.annotations import Annotations, Hand
from handmim.data.samples import MIN_SIDE_PX
from handmim.hand.conventions import mirror_points
from handmim.hand.label_checks import (
    FEWEST,
    note_bones,
    note_side,
    settle_order,
    settle_unit,
)
from handmim.images.decode import image_heads
from handmim.utils.findings import Level, Notes, level_of, shown

Array = NDArray[np.float64]

FEW_OUTSIDE, MANY_OUTSIDE = 0.02, 0.3  # shares of labelled keypoints
PERCENT, PERCENT_REACH, LARGE_PX = 100.0, 80.0, 200.0
# Photos of hands of different people reach 0.8 to 1.2 of the image (99 % quantile).
ENLARGED = 0.6
AGREES, OPPOSES = 0.3, -0.5  # correlation of 3D with 2D: 0.93 to 0.99 in labels of detectors
ROTATED = 5  # EXIF orientations from which on width and height change places


def group_images(annotations: Annotations, split_by: str) -> list[str]:
    """The group of every image, whose hands stay on one side of a split.

    Args:
        annotations: of a file.
        split_by: field of `images`; an image without it is a group of its own, together with the
            other entries of its file.
    """
    alone: dict[str, str] = {}
    groups = []
    for image in annotations.images:
        own = alone.setdefault(image["file_name"], str(image["id"]))
        stated = image.get(split_by)
        groups.append(own if stated is None else str(stated))
    return groups


def check_groups(annotations: Annotations, split_by: str, notes: Notes) -> None:
    """Note images that lack the field by which a file is split.

    Raises: ValueError for a field other than the default that no image has.
    """
    stated = [str(i[split_by]) for i in annotations.images if i.get(split_by) is not None]
    num, groups = len(annotations.images), len(set(stated))
    if not stated and split_by != "subject":
        raise ValueError(f"none of {num} images has the field {split_by!r} (data.split_by)")
    notes.judge(
        len(stated) == num and groups > 1,
        "keypoints-subjects",
        f"{groups} values of {split_by!r}; {num - len(stated)} of {num} images have none",
        f"without {split_by!r} in each of `images`, images of one person fall on both sides of the "
        "split (data.split_by names another field)",
        bad="warning",
    )


def missing_images(annotations: Annotations, root: Path) -> list[str]:
    """File names of images with hands that are not below the folder."""
    used = {hand.image for hand in annotations.hands}
    names = [annotations.images[i]["file_name"] for i in sorted(used)]
    return [name for name in names if not (root / name).is_file()]


def check_annotations(annotations: Annotations, root: Path, notes: Notes) -> None:
    """Note what is wrong or odd about the labels of a file.

    Args:
        annotations: well-formed entries.
        root: folder of the images.
        notes: where findings go; their names begin with "keypoints-".
    """
    hands, images = annotations.hands, annotations.images
    if not hands:
        notes.error("keypoints-file", "no annotation holds a hand", "see the other findings")
        return
    _check_names(notes, annotations)
    check_entries(notes, annotations)
    used = sorted({hand.image for hand in hands})
    heads = np.zeros((len(images), 3), np.int64)
    heads[used] = image_heads([root / images[i]["file_name"] for i in used])
    _check_sizes(notes, annotations, used, heads)
    values = np.stack([hand.keypoints for hand in hands])
    if not (values[..., 2] > 0).any():
        text = f"no keypoint of {len(hands)} hands is labelled (visibility > 0)"
        notes.error("keypoints-2d", text, "keypoints are x, y, visibility; 2 is visible")
        return
    rows = heads[[hand.image for hand in hands]]
    _check_2d(notes, hands, values, rows)
    check_cameras(notes, hands)
    if not notes.failed("keypoints-normalised", "keypoints-swapped"):
        whole = values[(values[..., 2] > 0).all(axis=1)][..., :2]
        if len(whole):
            settle_order(notes, "keypoints", whole, "canonical", "keypoints")
        if all(hand.joints is None for hand in hands):
            check_view(notes, hands, values)
    _check_3d(notes, hands)


def _check_names(notes: Notes, annotations: Annotations) -> None:
    """One file under several ids: two photos of one name, or photos labelled twice."""
    counts = Counter(image["file_name"] for image in annotations.images)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        notes.warning(
            "keypoints-names",
            f"{len(twice)} files stand under several image ids: {shown(twice)}",
            "were two folders joined, whose images share names? then labels are on wrong images",
        )


def _check_sizes(
    notes: Notes, annotations: Annotations, used: list[int], heads: NDArray[np.int64]
) -> None:
    """Stated sizes against those of the files, with and without EXIF rotation."""
    other: list[str] = []
    unrotated: list[str] = []
    unreadable: list[str] = []
    for i in used:
        image, (width, height, orientation) = annotations.images[i], heads[i].tolist()
        if not width:
            unreadable.append(image["file_name"])
            continue
        stored = (width, height)
        upright = stored[::-1] if orientation >= ROTATED else stored
        stated = (image.get("width") or upright[0], image.get("height") or upright[1])
        if stated != upright:
            text = f"{image['file_name']} ({stated[0]:g} x {stated[1]:g}, the image has "
            (unrotated if stated == stored else other).append(f"{text}{upright[0]} x {upright[1]})")
    if unreadable:
        bad: Level = "error" if len(unreadable) == len(used) else "warning"
        text = f"{len(unreadable)} of {len(used)} images with hands cannot be read: "
        fix = "take them out of the annotations, or copy them again"
        notes.judge(False, "keypoints-decode", text + shown(unreadable), fix, bad=bad)
    notes.judge(
        not other,
        "keypoints-size",
        f"{len(other)} of {len(used)} images have another size than the file says: {shown(other)}",
        "were they resized after labelling? take the originals, or scale the keypoints and "
        "correct width and height",
        bad=level_of(len(other), len(used)),
    )
    notes.judge(
        not unrotated,
        "keypoints-exif",
        f"{len(unrotated)} of {len(used)} images were labelled without their EXIF rotation: "
        f"{shown(unrotated)}",
        "images are read upright: rotate the keypoints, or store the images without EXIF",
        bad=level_of(len(unrotated), len(used)),
    )


def _outside(points: Array, seen: NDArray[np.bool_], size: Array) -> float:
    """Share of labelled points outside of their images."""
    out = ((points < 0) | (points > size[:, None])).any(axis=2) & seen
    return float(out.sum() / max(1, seen.sum()))


def _check_2d(notes: Notes, hands: Sequence[Hand], values: Array, heads: NDArray[np.int64]) -> None:
    seen, points = values[..., 2] > 0, values[..., :2]
    far = np.where(seen[..., None], np.abs(points), 0.0).max(axis=(1, 2))
    tiny = (far <= NORMALISED_PX) & (seen.sum(axis=1) > 1)
    if tiny.any():
        names = [hand.entry for hand, is_tiny in zip(hands, tiny, strict=True) if is_tiny]
        notes.error(
            "keypoints-normalised",
            f"keypoints of {len(names)} of {len(hands)} hands lie within {NORMALISED_PX} px of the "
            f"corner, as normalised ones do: {shown(names)}",
            "keypoints are in pixels: multiply x by the image's width and y by its height",
        )
        return
    known = heads[:, 0] > 0
    if not known.any():
        return
    points, seen, heads = points[known], seen[known], heads[known]
    stored = heads[:, :2].astype(np.float64)
    size = np.where(heads[:, 2:] >= ROTATED, stored[:, ::-1], stored)
    share = _outside(points, seen, size)
    swapped = _outside(points[..., ::-1], seen, size)
    unrotated = _outside(points, seen, stored)
    bad: Level = "warning" if share <= MANY_OUTSIDE else "error"
    text = f"{share:.1%} of the labelled keypoints lie outside of their images"
    name, fix = "outside", "keypoints are x, y in pixels of the stored image, from its top left"
    if share > FEW_OUTSIDE and unrotated <= share / 4:
        name, bad = "exif", "error"
        fix = f"without EXIF rotation {unrotated:.1%} do: images are read upright, rotate keypoints"
    elif share > FEW_OUTSIDE and swapped <= share / 4:
        name, bad = "swapped", "error" if len(points) >= FEWEST else "warning"
        fix = f"with x and y exchanged {swapped:.1%} do: keypoints are x, y, visibility"
    notes.judge(share <= FEW_OUTSIDE, f"keypoints-{name}", text, fix, bad=bad)
    if share <= FEW_OUTSIDE:
        _check_reach(notes, points, seen, size)
    spans = np.ptp(np.where(seen[..., None], points, points[:, :1]), axis=1).max(axis=1)
    small = int(((spans < MIN_SIDE_PX) & (seen.sum(axis=1) > 1)).sum())
    if small:
        text = f"{small} of {len(points)} hands are smaller than {MIN_SIDE_PX:g} px"
        notes.warning("keypoints-small", text, "take them out: a crop shows a few pixels enlarged")


def _check_reach(notes: Notes, points: Array, seen: NDArray[np.bool_], size: Array) -> None:
    """Percentages, and labels of smaller images, fill only the top left part of the images."""
    if len(points) < FEWEST:
        return
    far = np.array([np.quantile(points[..., k][seen], 0.99) for k in (0, 1)])
    parts = np.array([np.quantile((points[..., k] / size[:, None, k])[seen], 0.99) for k in (0, 1)])
    is_large = np.median(size.min(axis=1)) >= LARGE_PX
    if is_large and (far <= PERCENT).all() and (far >= PERCENT_REACH).all():
        notes.error(
            "keypoints-normalised",
            "all keypoints lie below 100 in larger images, as percentages do",
            "keypoints are in pixels: multiply x by width / 100 and y by height / 100",
        )
    elif (parts < ENLARGED).all():
        notes.warning(
            "keypoints-reach",
            f"keypoints fill only {parts[0]:.0%} of the width and {parts[1]:.0%} of the height of "
            "their images, from the top left",
            "were the images enlarged after labelling? scale the keypoints; padded images are fine",
        )


def _check_3d(notes: Notes, hands: Sequence[Hand]) -> None:
    whole = [h for h in hands if h.joints_valid is not None and h.joints_valid.all()]
    have = sum(hand.joints is not None for hand in hands)
    text = f"{have} of {len(hands)} hands have 3D keypoints" if have else "no 3D keypoints"
    notes.ok("keypoints-3d", text + ("" if have else ": 2D losses only"))
    if not whole:
        return
    where = "keypoints_3d"
    raw = np.stack([hand.joints for hand in whole if hand.joints is not None])
    try:
        joints = settle_unit(notes, "keypoints", raw, where)
    except ValueError as error:
        notes.error("keypoints-unit", str(error), f"{where} are in metres: {FORM}")
        return
    if not notes.failed("keypoints-unit"):
        _check_extents(notes, whole, joints)
    joints = settle_order(notes, "keypoints", joints, "canonical", where)
    if notes.failed("keypoints-order"):
        return
    note_bones(notes, "keypoints", joints, where)
    _check_axes(notes, joints, np.stack([hand.keypoints for hand in whole]))
    if not notes.failed("keypoints-axes"):
        is_right = np.array([hand.is_right for hand in whole])[:, None, None]
        note_side(notes, "keypoints", np.where(is_right, joints, mirror_points(joints)), where)


def _check_extents(notes: Notes, hands: Sequence[Hand], joints_m: Array) -> None:
    """Single hands far from any hand's size in a file of metres: other units, zeros."""
    extent = np.linalg.norm(np.ptp(joints_m, axis=1), axis=1)
    odd = [
        f"{hand.entry} ({size:.3g} m)"
        for hand, size in zip(hands, extent, strict=True)
        if not 0.01 <= size <= 2.0
    ]
    if odd:
        fix = "keypoints_3d are in metres: were files of several units joined? leave out empty ones"
        text = f"{len(odd)} of {len(hands)} hands have no hand's size in keypoints_3d: {shown(odd)}"
        notes.error("keypoints-unit", text, fix)


def _check_axes(notes: Notes, joints_m: Array, keypoints: Array) -> None:
    """x to the right and y down in 3D as in the image; the side checks z."""
    good = (keypoints[..., 2] > 0).all(axis=1)
    if not good.any():
        return
    flat, deep = keypoints[good][..., :2], joints_m[good]
    flat, deep = (a - a.mean(axis=1, keepdims=True) for a in (flat, deep))
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
    notes.judge(
        bool(min(x, y) > AGREES) and not is_exchanged,
        "keypoints-axes",
        f"keypoints_3d run with the image: correlation {x:.2f} in x, {y:.2f} in y",
        fix,
        bad="error" if min(x, y) < OPPOSES or is_exchanged else "warning",
    )
