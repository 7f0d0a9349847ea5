"""The hand model's file: whether it can be read safely, and whose hand it is."""

from pathlib import Path

import numpy as np

from handmim.hand.arrays import HandArrays
from handmim.hand.io import load_hand_arrays, resolve_hand_path
from handmim.utils.findings import Finding, Notes
from handmim.utils.unpickle import UnsafePickleError

SPAN_M = (0.12, 0.26)  # wrist to middle fingertip at rest
MOST_JOINTS = 8  # that a vertex should follow; more is slow skinning or noise
SOURCE = "MANO_RIGHT.pkl as downloaded from https://mano.is.tue.mpg.de"


def examine_hand(path: str | Path, left_shapedirs: str) -> tuple[list[Finding], HandArrays | None]:
    """Findings, and the hand where it can be used.

    Args:
        path: as hand.path.
        left_shapedirs: as hand.left_shapedirs.
    """
    notes = Notes()
    arrays = _read(notes, path, left_shapedirs)
    if arrays is None:
        return notes.findings, None
    with notes.guard("hand-side", f"take {SOURCE}"):
        _side(notes, arrays, resolve_hand_path(path).name)
    if arrays.side == "left":
        with notes.guard("hand-shapedirs", "hand.left_shapedirs=auto"):
            _shapedirs(notes, arrays, path, left_shapedirs)
    with notes.guard("hand-unit", f"take {SOURCE}"):
        _size(notes, arrays)
    with notes.guard("hand-weights", f"take {SOURCE}"):
        _weights(notes, arrays)
    with notes.guard("hand-standin", "make it again: python tools/build_standin.py"):
        if arrays.sha256 == load_hand_arrays("standin").sha256:
            text = "this is the stand-in: its figures do not compare with published ones"
            notes.ok("hand-standin", text)
    return notes.findings, arrays


def _read(notes: Notes, path: str | Path, left_shapedirs: str) -> HandArrays | None:
    with notes.guard("hand-file", f"take {SOURCE}, or hand=standin"):
        try:
            arrays = load_hand_arrays(path, left_shapedirs=left_shapedirs)
        except UnsafePickleError as error:
            notes.error("hand-pickle", str(error), f"delete it and take {SOURCE}")
            return None
        notes.ok(
            "hand-file",
            f"{arrays.name}: {len(arrays.v_template)} vertices, {len(arrays.faces)} triangles, "
            f"file sha256 {arrays.file_sha256[:16]}, identity {arrays.sha256[:16]}",
        )
        return arrays
    return None


def _side(notes: Notes, arrays: HandArrays, file_name: str) -> None:
    named = [side for side in ("right", "left") if side in file_name.lower()]
    notes.judge(
        named in ([], [arrays.side]),
        "hand-side",
        f"{file_name} holds a {arrays.side} hand",
        f"it was renamed or mixed up: take {SOURCE}",
    )


def _shapedirs(notes: Notes, arrays: HandArrays, path: str | Path, chosen: str) -> None:
    found = load_hand_arrays(path, left_shapedirs="auto")
    if not found.repairs:
        notes.judge(
            chosen in ("auto", "as_is"),
            "hand-shapedirs",
            f"the left hand's shape directions are sound, hand.left_shapedirs={chosen}",
            "hand.left_shapedirs=auto",
            bad="warning",
        )
    elif arrays.repairs:
        notes.warning(
            "hand-shapedirs",
            f"x of the left hand's shape directions has the wrong sign, as MANO_LEFT ships; "
            f"mended while reading: {', '.join(arrays.repairs)}",
            "nothing, if betas come from mended files too; else hand.left_shapedirs=as_is",
        )
    else:
        notes.error(
            "hand-shapedirs",
            "x of the left hand's shape directions has the wrong sign and is left so",
            "hand.left_shapedirs=auto",
        )


def _size(notes: Notes, arrays: HandArrays) -> None:
    tip, wrist = arrays.v_template[arrays.tip_ids[2]], arrays.J_regressor[0] @ arrays.v_template
    span_m = float(np.linalg.norm(tip - wrist))
    notes.judge(
        SPAN_M[0] <= span_m <= SPAN_M[1],
        "hand-unit",
        f"wrist to middle fingertip {span_m * 1e3:.0f} mm, taking the file's unit as metres",
        f"a hand has about 190 mm: take {SOURCE}",
    )


def _weights(notes: Notes, arrays: HandArrays) -> None:
    most = int((arrays.weights > 1e-3).sum(axis=1).max())
    regressor = arrays.J_regressor
    notes.judge(
        most <= MOST_JOINTS and bool((regressor > -0.5).all()),
        "hand-weights",
        f"a vertex follows at most {most} joints; regressor entries {regressor.min():.3f} to "
        f"{regressor.max():.3f}",
        f"take {SOURCE}",
        bad="warning",
    )
