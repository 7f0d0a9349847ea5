"""Checks of labels that several datasets share: cameras, units, axes, hand model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.label_files import FACTS, PARTS
from handmim.hand.arrays import HandArrays
from handmim.hand.label_checks import SIZES_M, note_bones, settle_axes, settle_order, settle_unit
from handmim.hand.model import HandLayer
from handmim.utils.findings import Notes
from handmim.utils.json_files import read_object

Array = NDArray[np.float64]

FOCAL = (0.3, 20.0)  # in longer sides of the image; crops have long ones
SQUARE = 1.2  # largest ratio of the two focal lengths
# FreiHAND's own vertices are up to 6 mm off its MANO vectors; another hand model is off by
# centimetres.
LARGEST_RESIDUAL_M = 0.012
OTHER_HAND = "hand=mano hand.path=MANO_RIGHT.pkl; if that is chosen, "
OPENCV, OPENGL = 1, -1  # sign of z before the camera


def read_facts(root: Path) -> dict[str, Any] | None:
    """Metadata of a rendered dataset; None for any other.

    Raises: ValueError for a damaged file.
    """
    path = root / FACTS
    return read_object(path, needs=("hand", "hand_sha256")) if path.is_file() else None


def check_made_with(root: Path, arrays: HandArrays) -> None:
    """Refuse labels that were rendered from another hand model.

    Raises: ValueError naming both hands, or for a dataset that is still being rendered.
    """
    facts = read_facts(root)
    if facts is None and (root / PARTS).is_dir():
        raise ValueError(
            f"{root} is not rendered to its end: call the same tools/synthesize.py again"
        )
    if facts is not None and facts["hand_sha256"] != arrays.sha256:
        raise ValueError(
            f"{root} was rendered from hand {facts['hand']} ({facts['hand_sha256'][:12]}), the "
            f"chosen one is {arrays.name} ({arrays.sha256[:12]}): set hand and hand.path to the "
            "hand of the dataset"
        )


def usable(K_px: Array) -> NDArray[np.bool_]:
    """Which of [n, 3, 3] matrices are those of any camera: [n]. Zeros and singular ones are not."""
    form = (np.abs(K_px[:, 2] - [0, 0, 1]).max(axis=1) < 1e-6) & (K_px[:, 1, 0] == 0)
    return form & (K_px[:, 0, 0] > 0) & (K_px[:, 1, 1] > 0)


def plausible(K_px: Array, width_px: int, height_px: int) -> NDArray[np.bool_]:
    """Which of [n, 3, 3] intrinsics a camera of such images can have: [n]."""
    fx, fy = K_px[:, 0, 0], K_px[:, 1, 1]
    longer = max(width_px, height_px)
    form = usable(K_px) & (np.abs(K_px[:, 0, 1]) < 0.1 * longer)
    focal = np.minimum(fx, fy) > FOCAL[0] * longer
    focal &= np.maximum(fx, fy) < FOCAL[1] * longer
    focal &= np.maximum(fx, fy) < SQUARE * np.minimum(fx, fy)
    # The centre of a crop's camera may lie outside of the crop.
    centre = (np.abs(K_px[:, :2, 2] - np.array([width_px, height_px]) / 2) < longer).all(axis=1)
    return form & focal & centre


def note_intrinsics(
    notes: Notes, prefix: str, K_px: Array, size_px: tuple[int, int], where: str
) -> bool:
    """Note whether [n, 3, 3] intrinsics are possible for images of (width, height)."""
    good = plausible(K_px, *size_px)
    fx, cx, cy = (float(np.median(K_px[:, i, j])) for i, j in ((0, 0), (0, 2), (1, 2)))
    notes.judge(
        bool(good.all()),
        f"{prefix}-k",
        f"{where}: {good.mean():.0%} of the intrinsics are possible for {size_px[0]} x "
        f"{size_px[1]} px (medians: focal length {fx:.0f} px, centre {cx:.0f}, {cy:.0f})",
        f"unpack the original of {where} again: K is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
        "pixels of the stored images",
    )
    return bool(good.all())


def are_hands(joints_m: Array, sign_z: int) -> NDArray[np.bool_]:
    """Which of [n, 21, 3] joints have a hand's size in metres and lie before the camera: [n]."""
    size_m = np.linalg.norm(np.ptp(joints_m, axis=1), axis=1)
    is_sized = (size_m > SIZES_M[0]) & (size_m < SIZES_M[1])
    return is_sized & (joints_m[..., 2] * sign_z > 0).all(axis=1)


def settle_joints(
    notes: Notes, prefix: str, joints: Array, order: str, sign_z: int, where: str
) -> Array:
    """[n, 21, 3] joints in metres, canonical order and the dataset's axes; notes what they were in.

    Args:
        notes, prefix, where: where and how findings are noted, and about which file or field.
        joints: as they are in the file.
        order, sign_z: of the dataset: a name of `LABEL_ORDERS`, and `OPENCV` or `OPENGL`.
    """
    joints = settle_unit(notes, prefix, joints, where)
    joints = settle_order(notes, prefix, joints, order, where)
    note_bones(notes, prefix, joints, where)
    return settle_axes(notes, prefix, joints, sign_z, where)


def reposed_error_m(
    hand: HandLayer,
    rotmats: NDArray[np.floating],
    betas: NDArray[np.floating],
    verts_m: NDArray[np.floating],
) -> Array:
    """Mean distance [n] of re-posed to given vertices [n, V, 3], whatever their translation;
    rotmats and betas are [n, 16, 3, 3] and [n, 10]."""
    with torch.no_grad():
        posed = hand(torch.from_numpy(rotmats).float(), torch.from_numpy(betas).float())
    return centred_error_m(posed.verts_m.double().numpy(), np.asarray(verts_m, np.float64))[0]


def centred_error_m(ours_m: Array, given_m: Array) -> tuple[Array, Array]:
    """Mean distance [n] of [n, P, 3] points after the mean translation, and the translations."""
    shift = (given_m - ours_m).mean(axis=1, keepdims=True)
    return np.linalg.norm(ours_m + shift - given_m, axis=2).mean(axis=1), shift


def note_residual(
    notes: Notes, prefix: str, posing: str, residuals_m: Array, usual_m: float, fix: str
) -> bool:
    """Note how far posed hands are off their labels; False for another hand model.

    Args:
        notes, prefix, fix: where and how findings are noted.
        posing: the subject of the text: "posing X by the MANO vectors misses the given vertices".
        residuals_m, usual_m: [n], and the median up to which nothing is wrong.
    """
    residual_m = float(np.median(residuals_m))
    is_good = residual_m <= LARGEST_RESIDUAL_M
    notes.judge(
        residual_m <= usual_m,
        f"{prefix}-residual",
        f"{posing} by {residual_m * 1e3:.2f} mm (median of {len(residuals_m)}, worst "
        f"{residuals_m.max() * 1e3:.2f})",
        fix,
        bad="warning" if is_good else "error",
    )
    return is_good


def note_placement(notes: Notes, prefix: str, hands: str, off_m: Array, fix: str) -> None:
    """Note how far [n] placed points are off their labels: "joints placed by handTrans"."""
    middle_m = float(np.median(off_m))
    notes.judge(
        middle_m <= LARGEST_RESIDUAL_M,
        f"{prefix}-placement",
        f"{hands} are {middle_m * 1e3:.2f} mm off the given ones (median of {len(off_m)})",
        fix,
    )
