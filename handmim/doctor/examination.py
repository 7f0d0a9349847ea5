"""All check-ups in turn."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from handmim.doctor.crops import examine_crops
from handmim.doctor.environment import examine_environment
from handmim.doctor.freihand import examine_freihand
from handmim.doctor.hand_file import examine_hand
from handmim.doctor.ho3d import examine_ho3d
from handmim.doctor.keypoints import examine_keypoints
from handmim.utils.findings import Finding


def examine(
    hand: Mapping[str, Any],
    data_dir: str | Path,
    num_checked: int,
    *,
    freihand: str | None = None,
    ho3d_v2: str | None = None,
    ho3d_v3: str | None = None,
    keypoints: Mapping[str, Any] | None = None,
    crops: str | None = None,
    full: bool = False,
) -> Iterator[tuple[str, list[Finding]]]:
    """Titles and findings, each part as soon as it is done. Nothing is written.

    Args:
        hand: path and left_shapedirs of the hand group.
        data_dir: as paths.data_dir.
        num_checked: samples, pictures and metas of each part that are looked at closely.
        freihand, ho3d_v2, ho3d_v3: roots of datasets; None leaves one out.
        keypoints: root and annotations, or None in both.
        crops: folder of unlabeled pictures.
        full: decode every image, instead of `num_checked` of each part.
    Raises: ValueError for settings that make no sense.
    """
    if num_checked < 1:
        raise ValueError(f"num_checked must be >= 1, got {num_checked} (num_checked=)")
    photos = dict(keypoints or {})
    if (photos.get("root") is None) != (photos.get("annotations") is None):
        raise ValueError("give both keypoints.root=DIR and keypoints.annotations=FILE, or neither")
    yield "environment", examine_environment(data_dir)
    findings, arrays = examine_hand(hand["path"], hand["left_shapedirs"])
    yield f"hand model {hand['path']}", findings
    if freihand is not None:
        yield (
            f"FreiHAND {freihand}",
            examine_freihand(Path(freihand), arrays, num_checked, full=full),
        )
    for version, root in ((2, ho3d_v2), (3, ho3d_v3)):
        if root is not None:
            found = examine_ho3d(Path(root), version, arrays, num_checked, full=full)
            yield f"HO-3D version {version} {root}", found
    if photos.get("root") is not None:
        places = Path(photos["root"]), Path(photos["annotations"])
        yield f"keypoints {places[1]}", examine_keypoints(*places, num_checked, full=full)
    if crops is not None:
        yield f"crops {crops}", examine_crops(Path(crops), sys.maxsize if full else num_checked)
