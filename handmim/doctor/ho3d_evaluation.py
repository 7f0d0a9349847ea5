"""The released truth of HO-3D's evaluation."""

from pathlib import Path

import numpy as np

from handmim.data.ho3d_checks import Metas
from handmim.data.label_checks import OPENGL
from handmim.data.label_files import GROUND_TRUTH
from handmim.doctor.sampling import JsonEntries
from handmim.hand.label_checks import settle_axes, settle_order, settle_unit
from handmim.utils.findings import Notes

LARGEST_MISS_M = 0.01  # truth against the given wrist


def check_truth(notes: Notes, prefix: str, root: Path, num: int, metas: Metas) -> None:
    """The released truth of the evaluation, where it is: its count, order and wrists.

    Args:
        notes, prefix: where and how findings are noted.
        root: of the dataset.
        num: frames in evaluation.txt.
        metas: of evaluation frames, by their place in that list.
    """
    name = f"{prefix}-truth"
    paths = {key: root / f"evaluation_{key}.json" for key in GROUND_TRUTH}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        text = f"no {' and '.join(missing)}: predictions can be submitted, not scored"
        fix = "both files of the truth were released, see the README of HO-3D's repository"
        notes.judge(len(missing) == 2, name, f"{text} ({fix})", fix, bad="warning")
        return
    lists = {key: JsonEntries(path) for key, path in paths.items()}
    counts = {key: len(entries) for key, entries in lists.items()}
    good = set(counts.values()) == {num}
    notes.judge(
        good,
        name,
        f"evaluation.txt has {num} frames, the truth has {counts['xyz']} joints and "
        f"{counts['verts']} meshes",
        "the truth is of another version of HO-3D: take the one of this version",
    )
    if not good or not metas:
        return
    where = "evaluation_xyz.json"
    places = np.array(sorted(metas))
    xyz = settle_unit(notes, prefix, lists["xyz"].read(places, GROUND_TRUTH["xyz"]), where)
    xyz = settle_order(notes, prefix, xyz, "ho3d", where)
    xyz = settle_axes(notes, prefix, xyz, OPENGL, where)
    verts = lists["verts"].read(places[:1], GROUND_TRUTH["verts"])
    settle_axes(notes, prefix, verts, OPENGL, "evaluation_verts.json")
    given = [np.asarray(metas[i].get("handJoints3D"), np.float64).ravel()[:3] for i in places]
    if any(len(wrist) != 3 for wrist in given):
        return
    off_m = float(np.median(np.linalg.norm(xyz[:, 0] - np.stack(given), axis=1)))
    notes.judge(
        off_m <= LARGEST_MISS_M,
        name,
        f"wrists of the truth are {off_m * 1e3:.2f} mm off those in the metas (median)",
        "the truth is in another order than evaluation.txt, or of another version",
    )
