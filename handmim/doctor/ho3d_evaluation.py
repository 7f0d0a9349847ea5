"""What HO-3D gives with its evaluation frames, and the released truth."""

from pathlib import Path

import numpy as np

from handmim.data.ho3d_checks import OPENGL, SEEN, Metas, cameras, stacked
from handmim.data.truth import SHAPES
from handmim.doctor.sampling import JsonEntries
from handmim.hand.conventions import OPENCV_FROM_OPENGL, project_px
from handmim.hand.label_checks import settle_axes, settle_order, settle_unit
from handmim.utils.findings import Notes

LARGEST_MISS_M = 0.01  # truth against the given wrist
BOX_SLACK = 0.2  # of the box's side, by which a wrist may be outside of it


def check_evaluation(
    notes: Notes, prefix: str, metas: Metas, size_px: tuple[int, int], source: str
) -> None:
    """Boxes, wrists and cameras that are given with the evaluation frames.

    Args:
        notes, prefix: where and how findings are noted.
        metas: by their place in the list.
        size_px: width and height of the pictures.
        source: how to get the original back.
    """
    given = [m for m in metas.values() if m.get("handBoundingBox") is not None]
    notes.judge(
        len(given) == len(metas),
        f"{prefix}-box",
        f"{len(given)} of {len(metas)} evaluation frames looked at have a handBoundingBox",
        f"without it the whole picture is cropped: {source}",
    )
    if not given:
        return
    K = cameras(notes, prefix, given, size_px, "evaluation: camMat", source)
    boxes = stacked(given, "handBoundingBox", (2, 2))
    turned = (boxes[:, 1] <= boxes[:, 0]).any(axis=1)
    outside = ((boxes < -1) | (boxes > np.array(size_px) + 1)).any(axis=(1, 2))
    notes.judge(
        not (turned | outside).any(),
        f"{prefix}-box",
        f"{outside.sum()} of {len(given)} boxes reach out of the picture, {turned.sum()} are "
        "turned around",
        f"handBoundingBox is x0, y0, x1, y1 in pixels: {source}",
        bad="error" if turned.any() else "warning",
    )
    if K is None or turned.any() or any(m.get("handJoints3D") is None for m in given):
        return
    wrists = np.stack([np.asarray(m["handJoints3D"], np.float64).ravel()[:3] for m in given])
    wrists = settle_axes(notes, prefix, wrists[:, None], OPENGL, "the given wrist")
    px = project_px(wrists @ OPENCV_FROM_OPENGL, K)[:, 0]
    slack = BOX_SLACK * (boxes[:, 1] - boxes[:, 0])
    within = ((px >= boxes[:, 0] - slack) & (px <= boxes[:, 1] + slack)).all(axis=1)
    notes.judge(
        float(within.mean()) >= SEEN,
        f"{prefix}-wrist",
        f"{within.mean():.0%} of the given wrists fall into or near their box by camMat",
        f"camMat, wrist and handBoundingBox do not belong together: {source}",
    )


def check_truth(notes: Notes, prefix: str, root: Path, num: int, metas: Metas) -> None:
    """The released truth of the evaluation, where it is: its count, order and wrists.

    Args:
        notes, prefix: where and how findings are noted.
        root: of the dataset.
        num: frames in evaluation.txt.
        metas: of evaluation frames, by their place in that list.
    """
    name = f"{prefix}-truth"
    paths = {key: root / f"evaluation_{key}.json" for key in SHAPES}
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
    xyz = settle_unit(notes, prefix, lists["xyz"].read(places, SHAPES["xyz"]), where)
    xyz = settle_order(notes, prefix, xyz, "ho3d", where)
    xyz = settle_axes(notes, prefix, xyz, OPENGL, where)
    verts = lists["verts"].read(places[:1], SHAPES["verts"])
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
