"""FreiHAND's pictures and masks."""

import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.data.freihand_checks import SOURCE
from handmim.data.label_files import VERSIONS, file_names
from handmim.doctor.camera import shares_in_masks
from handmim.doctor.sampling import decoded_sizes
from handmim.hand.conventions import project_px
from handmim.images.decode import read_rgb
from handmim.utils.findings import Level, Notes, shown

MASKED = 128  # masks are lossy JPEG
SHARE_GOOD, SHARE_BAD, LEAST_LEAD = 0.8, 0.6, 0.1


def count_pictures(notes: Notes, root: Path, part: str, num: int) -> None:
    """Whether every picture and mask of `num` samples is there, and no more pictures than that."""
    versions = VERSIONS if part == "training" else VERSIONS[:1]
    ids = _ids(root / part / "rgb")
    wanted = np.arange(num * len(versions))
    missing = np.setdiff1d(wanted, ids)
    extra = np.setdiff1d(ids, wanted)
    have = np.bincount(ids[ids < len(wanted)] // num, minlength=len(versions))
    text = f"{part}: {len(ids)} pictures, {len(wanted)} wanted"
    text += f" ({', '.join(f'{v} {n}' for v, n in zip(versions, have, strict=True))})"
    if len(missing):
        text += f"; missing {shown([f'{i:08d}.jpg' for i in missing[:4]])}"
    if len(extra):
        text += f"; without labels {shown([f'{i:08d}.jpg' for i in extra[:4]])}"
    whole = [v for v, n in zip(versions, have, strict=True) if n == num]
    fix = SOURCE
    if whole and len(whole) < len(versions) and not len(extra):
        fix += f", or train on what is whole: data.versions=[{','.join(whole)}]"
    # Training leaves out versions without any image.
    lacks_versions = bool(whole) and set(have.tolist()) == {0, num} and not len(extra)
    bad: Level = "warning" if lacks_versions else "error"
    notes.judge(not len(missing) and not len(extra), "freihand-pictures", text, fix, bad=bad)
    if part == "training" and (root / part / "mask").is_dir():
        gone = np.setdiff1d(np.arange(num), _ids(root / part / "mask"))
        text = f"{num - len(gone)} of {num} masks"
        notes.judge(not len(gone), "freihand-masks", text, SOURCE, bad="warning")


def _ids(folder: Path) -> NDArray[np.int64]:
    found = (re.fullmatch(r"(\d{8})\.jpg", name) for name in file_names(folder))
    return np.sort(np.array([int(m[1]) for m in found if m], np.int64))


def check_sizes(
    notes: Notes,
    root: Path,
    part: str,
    ids: NDArray[np.int64] | None,
    num: int,
    side_px: int,
) -> None:
    """Whether images can be decoded and have the size that labels are for.

    Args:
        notes: where findings go.
        root, part: of the dataset.
        ids: samples looked at, each before another background; None for all images.
        num: samples of the part.
        side_px: required side.
    """
    folder, versions = root / part / "rgb", len(VERSIONS) if part == "training" else 1
    if ids is None:
        numbers = np.arange(num * versions)
    else:
        numbers = ids + num * (np.arange(len(ids)) % versions)
    paths = [folder / f"{number:08d}.jpg" for number in numbers]
    paths = [path for path in paths if path.is_file()]
    decoded = decoded_sizes(paths)
    sizes = Counter(size for size in decoded if size is not None)
    damaged = [path.name for path, size in zip(paths, decoded, strict=True) if size is None]
    text = ", ".join(f"{n} of {w} x {h} px" for (w, h), n in sizes.items())
    fix = f"labels are for {side_px} px: {SOURCE}"
    text = f"{part}: {len(paths)} images decoded: {text or 'none'}"
    notes.judge(set(sizes) <= {(side_px, side_px)}, "freihand-size", text, fix)
    if damaged:
        text = f"{part}: {len(damaged)} of {len(paths)} images decoded are damaged: "
        notes.error("freihand-decode", text + shown(damaged), SOURCE)


def check_masks(
    notes: Notes,
    root: Path,
    part: str,
    ids: NDArray[np.int64],
    xyz_cam_m: NDArray[np.float64],
    K_px: NDArray[np.float64],
) -> bool:
    """Whether joints fall on the mask of their picture, and less so on other masks.

    Args:
        notes: where findings go.
        root, part: of the dataset.
        ids: samples [n].
        xyz_cam_m, K_px: their joints and intrinsics, [n, 21, 3] and [n, 3, 3].
    Returns: False when labels and masks do not belong together; True also without masks.
    """
    rows, masks = [], []
    for row, item in enumerate(ids):
        path = root / part / "mask" / f"{item:08d}.jpg"
        mask = read_rgb(path) if path.is_file() else None
        if mask is not None:
            rows.append(row)
            masks.append(cv2.extractChannel(mask, 0) > MASKED)
    if not rows:
        return True
    own, others = shares_in_masks(project_px(xyz_cam_m[rows], K_px[rows]), masks)
    good = own >= SHARE_BAD and (len(rows) == 1 or own - others >= LEAST_LEAD)
    text = f"{part}: {own:.0%} of the joints fall on their hand's mask by K"
    text += f" ({others:.0%} on other hands' masks, {len(rows)} pictures)"
    notes.judge(
        good and own >= SHARE_GOOD,
        "freihand-mask",
        text,
        f"{part}_K.json, {part}_xyz.json and the pictures do not belong together: {SOURCE}",
        bad="warning" if good else "error",
    )
    return good
