"""Photos with 21 keypoints in a COCO-style JSON file: what their reader finds, and decoding."""

from pathlib import Path

import numpy as np

from handmim.data.annotation_checks import check_annotations, check_groups, missing_images
from handmim.data.annotation_fields import FORM
from handmim.data.annotations import Annotations, read_annotations
from handmim.doctor.sampling import decoded_sizes
from handmim.hand.skeleton import NUM_JOINTS
from handmim.utils.findings import Finding, Notes, shown, spread


def examine_keypoints(
    root: Path, annotations: Path, num_checked: int, *, full: bool = False
) -> list[Finding]:
    """Findings on the images and their labels.

    Args:
        root: folder of the images.
        annotations: JSON file; all of it is checked.
        num_checked: images that are decoded.
        full: decode all of them.
    """
    notes = Notes()
    with notes.guard("keypoints-file", FORM):
        content = read_annotations(annotations, notes, "keypoints.annotations")
        num, count = len(content.hands), f"of {NUM_JOINTS} keypoints"
        if not notes.failed("keypoints-count"):
            notes.ok("keypoints-count", f"{num} hands {count}")
        missing = missing_images(content, root)
        text = f"{len(content.images)} images in the file, {len(missing)} with hands are not below "
        text += f"{root}" + (f": {shown(missing)}" if missing else "")
        fix = "keypoints.root is the folder that file_name starts from"
        notes.judge(not missing, "keypoints-pictures", text, fix)
        check_groups(content, "subject", notes)
        if not missing and content.hands:
            check_annotations(content, root, notes)
            _decode(notes, root, content, len(content.images) if full else num_checked)
        _scores(notes, content)
    return notes.findings


def _decode(notes: Notes, root: Path, content: Annotations, num_checked: int) -> None:
    if notes.failed("keypoints-decode"):
        return
    names = [content.images[i]["file_name"] for i in sorted({h.image for h in content.hands})]
    chosen = [names[i] for i in spread(len(names), num_checked)]
    sizes = decoded_sizes([root / name for name in chosen])
    damaged = [name for name, size in zip(chosen, sizes, strict=True) if size is None]
    notes.judge(
        not damaged,
        "keypoints-decode",
        f"{len(chosen)} of {len(names)} images decoded, {len(damaged)} cannot be"
        + (f": {shown(damaged)}" if damaged else ""),
        "take them out of the annotations, or copy them again",
    )


def _scores(notes: Notes, content: Annotations) -> None:
    """Confidences of the 2D keypoints, where annotations give any."""
    have = [hand.scores for hand in content.hands if hand.scores is not None]
    if have:
        text = f"{len(have)} of {len(content.hands)} hands have confidences of their keypoints, "
        notes.ok("keypoints-scores", f"{text}{np.mean(have):.2f} on average")
