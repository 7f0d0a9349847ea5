"""Labels of single hands: copies, confidences, boxes, cameras, and how the hands are seen."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handmim.data.annotations import Annotations, Hand
from handmim.data.label_checks import usable
from handmim.hand.conventions import project_px
from handmim.hand.label_checks import FEWEST_SIDED
from handmim.utils.findings import Notes, shown

Array = NDArray[np.float64]

# A hand of pixels cannot lie within 1.5 px of the corner; normalised ones may pass 1 a little.
NORMALISED_PX = 1.5
BOX_SLACK = 0.25  # of the box's longer side; a corner in place of the size makes it larger
FEWEST_POINTS = 3  # keypoints from which on two hands are not the same by chance
OFF_SHARE = 0.2  # of the keypoints' extent
# Hands of six public sets point up (55 to 100 %, by less than 45 degrees) or in all directions.
SHOW_BACKS, POINT_AWAY = 0.6, 0.7


def _miss_px(joints_m: Array, K_px: Array, points_px: Array) -> float:
    return float(np.median(np.abs(project_px(joints_m, K_px) - points_px)))


def check_entries(notes: Notes, annotations: Annotations) -> None:
    """Copies in one image or several, confidences as visibilities, keypoints beside their box."""
    hands, seen = annotations.hands, set()
    odd: list[str] = []
    copies: list[str] = []
    beside: list[str] = []
    images_of: defaultdict[bytes, dict[str, str]] = defaultdict(dict)
    for hand in hands:
        points = hand.keypoints[hand.keypoints[:, 2] > 0]
        key = (annotations.images[hand.image]["file_name"], points.tobytes())
        if not len(points):
            continue
        (copies if key in seen else []).append(hand.entry)
        seen.add(key)
        if len(points) >= FEWEST_POINTS:
            images_of[key[1]].setdefault(key[0], hand.entry)
        if not np.isin(points[:, 2], (1, 2)).all():
            odd.append(hand.entry)
        if hand.box is not None and (hand.box[2:] > NORMALISED_PX).all():
            low, side = hand.box[:2], hand.box[2:]
            slack = side.max() * BOX_SLACK
            far = (points[:, :2] < low - slack) | (points[:, :2] > low + side + slack)
            if far.any(axis=1).mean() > 0.5:
                beside.append(hand.entry)
    for name, found, what, fix in (
        ("copies", copies, "repeat another hand of their image", "take the copies out"),
        (
            "visibility",
            odd,
            "have a visibility other than 0, 1 and 2: all above 0 count as labelled",
            "give confidences as keypoint_scores, and 0 where a keypoint is not to be used",
        ),
        (
            "box",
            beside,
            "lie outside of their own bbox (x, y, width, height)",
            "are keypoints relative to their crop, or of another image?",
        ),
    ):
        if found:
            text = f"{len(found)} of {len(hands)} hands {what}: {shown(found)}"
            notes.warning(f"keypoints-{name}", text, fix)
    repeated = [entry for same in images_of.values() if len(same) > 1 for entry in same.values()]
    most = max(map(len, images_of.values()), default=0)
    notes.judge(
        not repeated,
        "keypoints-repeated",
        f"{len(repeated)} of {len(hands)} hands have the same keypoints as a hand of another "
        f"image, up to {most} images alike: {shown(repeated)}",
        "give every image its own labels; fine for copies of one image",
        bad="error" if most >= FEWEST_SIDED and most > len(hands) / 2 else "warning",
    )


def check_cameras(notes: Notes, hands: Sequence[Hand]) -> None:
    """Whether K is a camera's, and projects the 3D keypoints onto the 2D ones."""
    have = [hand for hand in hands if hand.K is not None]
    if not have:
        return
    K = np.stack([hand.K for hand in have if hand.K is not None])
    good = usable(K)
    odd = [hand.entry for hand, is_good in zip(have, good, strict=True) if not is_good]
    form = "K is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in px, left out where it is not known"
    text = f"K of {len(odd)} of {len(have)} hands is no camera's: {shown(odd)}"
    notes.judge(not odd, "keypoints-k", text, form)
    off = []
    for hand, matrix in zip(have, K, strict=True):
        seen = hand.keypoints[:, 2] > 0
        if odd or hand.joints is None or hand.joints_valid is None or not seen.any():
            continue
        both = seen & hand.joints_valid
        points, joints = hand.keypoints[both, :2], hand.joints[both]
        is_before = len(points) > 0 and bool((joints[:, 2] > 0).all())
        if not is_before or _miss_px(joints, matrix, points) > OFF_SHARE * np.ptp(points):
            off.append(hand.entry)
    if off:
        text = (
            f"K projects keypoints_3d of {len(off)} of {len(have)} hands elsewhere than keypoints"
        )
        fix = "with a K, keypoints_3d are in the camera's coordinates; leave K out if they are not"
        notes.warning("keypoints-projection", f"{text}: {shown(off)}", fix)


def check_view(notes: Notes, hands: Sequence[Hand], values: Array) -> None:
    """Hands that are upside down or lie, seen from the back by their sides: exchanged axes?"""
    whole = (values[..., 2] > 0).all(axis=1)
    if whole.sum() < FEWEST_SIDED or any(
        f.name == "keypoints-side" and f.level == "warning" for f in notes.findings
    ):
        return
    points = values[whole][..., :2]
    is_right = np.array([hand.is_right for hand in hands])[whole]
    index, middle, little = (points[:, k] - points[:, 0] for k in (5, 9, 17))
    turn = index[:, 0] * little[:, 1] - index[:, 1] * little[:, 0]
    backs = float(((turn > 0) == is_right).mean())
    down = float((middle[:, 1] > np.abs(middle[:, 0])).mean())
    left = float((-middle[:, 0] > np.abs(middle[:, 1])).mean())
    where, share = max(("down", down), ("left", left), key=lambda pair: pair[1])
    if backs > SHOW_BACKS and share > POINT_AWAY:
        text = f"{share:.0%} of the hands point {where} and {backs:.0%} show their backs, by their "
        text += "sides and 2D keypoints alone"
        fix = "fine for hands seen so; else y runs up instead of down, or x and y are exchanged"
        notes.warning("keypoints-view", text, fix)
