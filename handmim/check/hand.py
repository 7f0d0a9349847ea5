"""The hand model's file, and whether it can be the hand of a dataset's labels."""

from pathlib import Path

import numpy as np

from handmim.data.label_checks import check_made_with
from handmim.hand.arrays import HandArrays
from handmim.hand.io import load_hand_arrays, resolve_hand_path
from handmim.hand.model import HandModel
from handmim.utils.findings import Finding, Notes
from handmim.utils.unpickle import UnsafePickleError

SPAN_M = (0.12, 0.26)  # wrist to middle fingertip at rest
MOST_JOINTS = 8  # that a vertex should follow; more is slow skinning or noise
SOURCE = "MANO_RIGHT.pkl as downloaded from https://mano.is.tue.mpg.de"
TAKE = f"take {SOURCE}"


def check_hand(path: str | Path, left_shapedirs: str) -> tuple[list[Finding], HandArrays | None]:
    """Findings, and the hand where it can be used.

    Args:
        path: as hand.path.
        left_shapedirs: as hand.left_shapedirs.
    """
    notes = Notes()
    arrays = _read(notes, path, left_shapedirs)
    if arrays is None:
        return notes.findings, None
    with notes.guard("hand-side", TAKE):
        file_name = resolve_hand_path(path).name
        named = [side for side in ("right", "left") if side in file_name.lower()]
        text, fix = f"{file_name} holds a {arrays.side} hand", f"it was renamed or mixed up: {TAKE}"
        notes.judge(named in ([], [arrays.side]), "hand-side", text, fix)
    if arrays.side == "left":
        with notes.guard("hand-shapedirs", "hand.left_shapedirs=auto"):
            _shapedirs(notes, arrays, path, left_shapedirs)
    with notes.guard("hand-unit", TAKE):
        tip, wrist = arrays.v_template[arrays.tip_ids[2]], arrays.J_regressor[0] @ arrays.v_template
        span_m = float(np.linalg.norm(tip - wrist))
        text = f"wrist to middle fingertip {span_m * 1e3:.0f} mm, taking the file's unit as metres"
        fix = f"a hand has about 190 mm: {TAKE}"
        notes.judge(SPAN_M[0] <= span_m <= SPAN_M[1], "hand-unit", text, fix)
    with notes.guard("hand-weights", TAKE):
        most, regressor = int((arrays.weights > 1e-3).sum(axis=1).max()), arrays.J_regressor
        text = f"a vertex follows at most {most} joints; regressor entries "
        text += f"{regressor.min():.3f} to {regressor.max():.3f}"
        good = most <= MOST_JOINTS and bool((regressor > -0.5).all())
        notes.judge(good, "hand-weights", text, TAKE, bad="warning")
    with notes.guard("hand-standin", "make it again: python tools/build_standin.py"):
        if arrays.sha256 == load_hand_arrays("standin").sha256:
            text = "this is the stand-in: its results do not compare with published ones"
            notes.ok("hand-standin", text)
    return notes.findings, arrays


def _read(notes: Notes, path: str | Path, left_shapedirs: str) -> HandArrays | None:
    with notes.guard("hand-file", f"{TAKE}, or hand=standin"):
        try:
            arrays = load_hand_arrays(path, left_shapedirs=left_shapedirs)
        except UnsafePickleError as error:
            notes.error("hand-pickle", str(error), f"delete it and {TAKE}")
            return None
        notes.ok(
            "hand-file",
            f"{arrays.name}: {len(arrays.v_template)} vertices, {len(arrays.faces)} triangles, "
            f"file sha256 {arrays.file_sha256[:16]}, identity {arrays.sha256[:16]}",
        )
        return arrays
    return None


def _shapedirs(notes: Notes, arrays: HandArrays, path: str | Path, chosen: str) -> None:
    name, auto = "hand-shapedirs", "hand.left_shapedirs=auto"
    wrong = "x of the left hand's shape directions has the wrong sign"
    if not load_hand_arrays(path, left_shapedirs="auto").repairs:
        text = f"the left hand's shape directions are sound, hand.left_shapedirs={chosen}"
        notes.judge(chosen in ("auto", "as_is"), name, text, auto, bad="warning")
    elif arrays.repairs:
        text = f"{wrong}, as MANO_LEFT ships; mended while reading: {', '.join(arrays.repairs)}"
        fix = "nothing, if betas come from mended files too; else hand.left_shapedirs=as_is"
        notes.warning(name, text, fix)
    else:
        notes.error(name, f"{wrong} and is left so", auto)


def usable_hand(notes: Notes, prefix: str, root: Path, hand: HandArrays | None) -> HandModel | None:
    """The model to pose labels with, or None with a note why not.

    Args:
        notes, prefix: where and how findings are noted.
        root: of the dataset.
        hand: the chosen one; None where it could not be read.
    """
    name = f"{prefix}-hand"
    if hand is None:
        text = "poses and joints are not checked: the hand model could not be read"
        notes.warning(name, text, "mend hand.path first")
        return None
    if hand.side == "left":
        text = f"{hand.name} is a left hand, the dataset's are right"
        notes.error(name, text, "hand=mano hand.path=MANO_RIGHT.pkl")
        return None
    with notes.guard(name, "choose the hand that the set was rendered from (hand, hand.path)"):
        check_made_with(root, hand)
        notes.ok(name, f"labels are posed again with {hand.name}")
        return HandModel(hand)
    return None
