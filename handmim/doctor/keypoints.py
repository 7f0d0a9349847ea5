"""Photos with 21 keypoints in a COCO-style JSON file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.data.decode import read_rgb
from handmim.data.keypoints import keypoint_scores
from handmim.utils.findings import Finding, Notes, shown, spread
from handmim.hand.label_checks import finite, note_bones, settle_order, settle_unit
from handmim.hand.skeleton import NUM_JOINTS

FORM = "data/README.md shows the form of the file"
FEW_OUTSIDE, MANY_OUTSIDE = 0.02, 0.3  # shares of labelled keypoints
Note = dict[str, Any]
Array = NDArray[np.float64]


def examine_keypoints(root: Path, annotations: Path, num_checked: int) -> list[Finding]:
    """Findings on the pictures and their labels.

    Args:
        root: folder of the pictures.
        annotations: JSON file.
        num_checked: annotations and pictures looked at closely.
    """
    notes = Notes()
    with notes.guard("keypoints-file", FORM):
        content = json.loads(annotations.read_text())
        images = {image["id"]: image for image in content["images"]}
        labels: list[Note] = content["annotations"]
        lost = [n for n in labels if n["image_id"] not in images]
        if lost or not labels:
            raise ValueError(
                f"{len(labels)} annotations, {len(lost)} of them name no picture of `images`"
            )
        counts = Counter(len(note["keypoints"]) for note in labels)
        notes.judge(
            set(counts) == {3 * NUM_JOINTS},
            "keypoints-count",
            f"{len(labels)} annotations of {', '.join(f'{n / 3:g}' for n in counts)} keypoints",
            f"{NUM_JOINTS} keypoints of x, y, visibility are wanted: {FORM}",
        )
        _pictures(notes, root, images)
        _groups(notes, images)
        whole = [note for note in labels if len(note["keypoints"]) == 3 * NUM_JOINTS]
        if not whole:
            return notes.findings
        chosen = [whole[i] for i in spread(len(whole), num_checked)]
        sizes = _sizes(notes, root, [images[note["image_id"]] for note in chosen])
        with notes.guard("keypoints-2d", FORM):
            _two_d(notes, labels, chosen, sizes)
        with notes.guard("keypoints-3d", FORM):
            _three_d(notes, whole, num_checked)
        _scores(notes, labels)
    return notes.findings


def _pictures(notes: Notes, root: Path, images: dict[Any, Note]) -> None:
    missing = [i["file_name"] for i in images.values() if not (root / i["file_name"]).is_file()]
    text = f"{len(images) - len(missing)} of {len(images)} pictures are below {root}"
    text += f"; missing {shown(missing)}" if missing else ""
    fix = "keypoints.root is the folder that file_name starts from; take the others out of the file"
    notes.judge(not missing, "keypoints-pictures", text, fix)


def _groups(notes: Notes, images: dict[Any, Note]) -> None:
    subjects = Counter(str(image["subject"]) for image in images.values() if "subject" in image)
    num = sum(subjects.values())
    notes.judge(
        num == len(images) and len(subjects) > 1,
        "keypoints-subjects",
        f"{len(subjects)} subjects; {len(images) - num} pictures name none",
        "without `subject` in each of `images`, pictures of one person fall on both sides of the "
        "split (data.split_by names another field)",
        bad="warning",
    )


def _sizes(notes: Notes, root: Path, images: list[Note]) -> Array:
    """[n, 2] width and height of pictures, NaN where one cannot be read."""
    sizes = np.full((len(images), 2), np.nan)
    damaged, other = [], []
    for row, image in zip(sizes, images, strict=True):
        path = root / image["file_name"]
        picture = read_rgb(path) if path.is_file() else None
        if picture is None:
            damaged += [image["file_name"]] if path.is_file() else []
            continue
        row[:] = picture.shape[1], picture.shape[0]
        told = (image.get("width", row[0]), image.get("height", row[1]))
        other += [image["file_name"]] if told != tuple(row) else []
    text = f"{len(images)} pictures looked at"
    if damaged:
        notes.error(
            "keypoints-decode",
            f"{len(damaged)} of {text} cannot be decoded: {shown(damaged)}",
            "take them out of the annotations",
        )
    notes.judge(
        not other,
        "keypoints-size",
        f"{len(other)} of {text} have another size than the file says"
        + (f": {shown(other)}" if other else ""),
        "they were resized after labelling: take the originals",
    )
    return sizes


def _two_d(notes: Notes, labels: list[Note], chosen: list[Note], sizes: Array) -> None:
    values = np.array([note["keypoints"] for note in chosen], np.float64)
    values = values.reshape(len(chosen), NUM_JOINTS, 3)
    seen = values[..., 2] > 0
    good = np.isfinite(sizes).all(axis=1)
    at, size = values[good][..., :2], sizes[good][:, None]
    outside = ((at < 0) | (at > size)).any(axis=2) & seen[good]
    share = float(outside.sum() / max(1, seen[good].sum()))
    notes.judge(
        share <= FEW_OUTSIDE,
        "keypoints-outside",
        f"{share:.1%} of the labelled keypoints lie outside of their pictures",
        "keypoints are x, y in pixels of the stored picture, from its top left corner",
        bad="warning" if share <= MANY_OUTSIDE else "error",
    )
    whole = values[seen.all(axis=1)][..., :2]
    if len(whole):
        settle_order(notes, "keypoints", whole, "canonical", "keypoints")
    left = sum(str(n.get("handedness", "right")).lower().startswith("l") for n in labels)
    text = f"{len(labels)} hands in 2D ({left} left), {seen.mean():.0%} of the keypoints labelled"
    notes.ok("keypoints-2d", text)


def _three_d(notes: Notes, labels: list[Note], num_checked: int) -> None:
    have = [note for note in labels if note.get("keypoints_3d") is not None]
    if not have:
        notes.ok("keypoints-3d", "no 3D keypoints: 2D losses only")
        return
    chosen = [have[i] for i in spread(len(have), num_checked)]
    rows = [np.asarray(note["keypoints_3d"], np.float64) for note in chosen]
    if any(row.shape not in ((NUM_JOINTS, 3), (NUM_JOINTS, 4)) for row in rows):
        raise ValueError(f"keypoints_3d is {rows[0].shape}, wanted 21 x 3 or 21 x 4")
    whole = [i for i, row in enumerate(rows) if row.shape[1] == 3 or bool((row[:, 3] > 0).all())]
    notes.ok("keypoints-3d", f"{len(have)} of {len(labels)} hands have 3D keypoints")
    if not whole:
        return
    where = "keypoints_3d"
    joints = np.stack([rows[i][:, :3] for i in whole])
    flat = np.array([chosen[i]["keypoints"] for i in whole], np.float64)
    flat = flat.reshape(len(whole), -1, 3)
    kept = finite(notes, "keypoints", joints, where)
    joints = settle_unit(notes, "keypoints", joints[kept], where)
    joints = settle_order(notes, "keypoints", joints, "canonical", where)
    note_bones(notes, "keypoints", joints, where)
    if not notes.failed("keypoints-order"):
        _axes(notes, joints, flat[kept])


def _scores(notes: Notes, labels: list[Note]) -> None:
    """Confidences of the 2D keypoints, where annotations give any."""
    have, bad = [], []
    for note in labels:
        try:
            scores = keypoint_scores(note)
        except ValueError:
            bad.append(str(note.get("id", note["image_id"])))
            continue
        have += [] if scores is None else [scores]
    if have or bad:
        mean = f", {np.mean(have):.2f} on average" if have else ""
        text = f"{len(have)} of {len(labels)} hands have confidences of their keypoints{mean}"
        notes.judge(
            not bad,
            "keypoints-scores",
            text + (f"; {len(bad)} others are no such: {shown(bad)}" if bad else ""),
            f"keypoint_scores are {NUM_JOINTS} numbers in [0, 1]: {FORM}",
        )


def _axes(notes: Notes, joints_m: Array, keypoints: Array) -> None:
    """x to the right and y down in 3D as in the picture; z cannot be told."""
    seen = keypoints[..., 2] > 0
    good = seen.all(axis=1)
    if not good.any():
        return
    flat, deep = (a[good][..., :2] for a in (keypoints, joints_m))
    flat, deep = (a - a.mean(axis=1, keepdims=True) for a in (flat, deep))
    along = (flat * deep).sum(axis=(0, 1))
    both = np.sqrt((flat**2).sum(axis=(0, 1)) * (deep**2).sum(axis=(0, 1)))
    x, y = along / np.maximum(both, 1e-12)
    notes.judge(
        bool(min(x, y) > 0.3),
        "keypoints-axes",
        f"keypoints_3d run with the picture: correlation {x:.2f} in x, {y:.2f} in y",
        "keypoints_3d are x right, y down, z away from the camera: negate what points elsewhere",
    )
