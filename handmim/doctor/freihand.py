"""FreiHAND: files and counts; `freihand_pictures` and `freihand_labels` look inside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.data.freihand import FIELDS as READ
from handmim.data.freihand_checks import SOURCE, Labels, check_labels
from handmim.data.label_checks import read_facts
from handmim.doctor.freihand_pictures import check_masks, check_sizes, count_pictures
from handmim.doctor.rendered import usable_hand
from handmim.doctor.sampling import JsonEntries, missing_of
from handmim.hand.arrays import HandArrays
from handmim.hand.model import HandModel
from handmim.utils.findings import Finding, Notes, shown, spread

EVAL_SOURCE = "unpack FreiHAND_pub_v2_eval.zip beside it"
COUNTS = {"training": 32560, "evaluation": 3960}
FIELDS: dict[str, tuple[int, ...]] = {**READ, "scale": ()}  # the reader has no use for scale
GIVEN = {"training": tuple(FIELDS), "evaluation": ("K", "scale")}
TRUTH = ("xyz", "verts")
SIDE_PX = 224


def examine_freihand(
    root: Path, hand: HandArrays | None, num_checked: int, *, full: bool = False
) -> list[Finding]:
    """Findings on the unpacked dataset.

    Args:
        root: folder with training/ and training_K.json.
        hand: model of the annotations; None where it could not be read.
        num_checked: samples and images looked at closely, of each part.
        full: decode all images.
    """
    notes = Notes()
    if not _layout(notes, root):
        return notes.findings
    facts: dict[str, Any] | None = None
    with notes.guard("freihand-facts", "synthesize the set again"):
        facts = read_facts(root)
    model = usable_hand(notes, "freihand", root, hand)
    for part in COUNTS:
        if (root / f"{part}_K.json").is_file():
            with notes.guard(f"freihand-{part}", SOURCE):
                _examine_part(notes, root, part, facts, model, num_checked, full)
    return notes.findings


def _layout(notes: Notes, root: Path) -> bool:
    wanted = [f"{part}/rgb" for part in COUNTS]
    wanted += [f"{part}_{name}.json" for part, names in GIVEN.items() for name in names]
    missing = missing_of(root, wanted)
    nested = [p.parent for p in root.glob("*/training_K.json")] if root.is_dir() else []
    vital = [name for name in missing if name.startswith("training")]
    text = f"missing: {shown(missing, 8)}" if missing else "every folder and list is there"
    fix = f"name the inner folder: freihand={nested[0]}" if nested else SOURCE
    notes.judge(
        not missing, "freihand-layout", f"{root}: {text}", fix, bad="error" if vital else "warning"
    )
    return (root / "training_K.json").is_file() or (root / "evaluation_K.json").is_file()


def _examine_part(
    notes: Notes,
    root: Path,
    part: str,
    facts: dict[str, Any] | None,
    model: HandModel | None,
    num_checked: int,
    full: bool,
) -> None:
    lists = _open_lists(notes, root, part)
    if not lists:
        return
    lengths = {name: len(entries) for name, entries in lists.items()}
    notes.judge(
        len(set(lengths.values())) == 1 and min(lengths.values()) > 0,
        "freihand-lists",
        f"{part}: entries {', '.join(f'{k} {n}' for k, n in lengths.items())}",
        f"the lists of one part belong together: {SOURCE}",
    )
    if not min(lengths.values()):
        return
    num = max(lengths.values())
    _counts(notes, part, num, facts)
    ids = spread(min(lengths.values()), num_checked)
    side_px = int(facts["scene"]["image_px"]) if facts else SIDE_PX
    if (root / part / "rgb").is_dir():
        with notes.guard("freihand-pictures", SOURCE):
            count_pictures(notes, root, part, num)
        with notes.guard("freihand-size", SOURCE):
            check_sizes(notes, root, part, None if full else ids, num, side_px)
    if part == "evaluation":
        _truth(notes, lists)
    read = {name: _read(notes, entries, ids, FIELDS[name]) for name, entries in lists.items()}
    labels = {name: values for name, values in read.items() if values is not None}
    if not labels:
        return

    def fall_on_masks(kept: NDArray[np.bool_], good: Labels) -> bool:
        return check_masks(notes, root, part, ids[kept], good["xyz"], good["K"])

    # Images of another size are noted already.
    masks = None if notes.failed("freihand-size") else fall_on_masks
    check_labels(notes, part, labels, model, (side_px, side_px), masks)


def _open_lists(notes: Notes, root: Path, part: str) -> dict[str, JsonEntries]:
    lists = {}
    for name in FIELDS:
        path = root / f"{part}_{name}.json"
        if path.is_file():
            with notes.guard("freihand-json", SOURCE):
                lists[name] = JsonEntries(path)
    return lists


def _read(
    notes: Notes, entries: JsonEntries, ids: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.float64] | None:
    with notes.guard("freihand-json", SOURCE):
        return entries.read(ids, shape)
    return None


def _counts(notes: Notes, part: str, num: int, facts: dict[str, Any] | None) -> None:
    wanted = COUNTS[part]
    whose = "FreiHAND has"
    if facts:
        wanted, whose = facts["num" if part == "training" else "num_eval"], "it was rendered with"
    notes.judge(
        num == wanted,
        "freihand-counts",
        f"{part}: {num} samples" + ("" if num == wanted else f", {whose} {wanted}"),
        f"{SOURCE}, unless a part is meant",
        bad="warning",
    )


def _truth(notes: Notes, lists: Mapping[str, JsonEntries]) -> None:
    missing = [f"evaluation_{name}.json" for name in TRUTH if name not in lists]
    text = "the truth of the evaluation is there: scores are computed here"
    if missing:
        text = f"no {' and '.join(missing)}: predictions can be submitted, not scored "
        text += f"({EVAL_SOURCE})"
    notes.judge(len(missing) != 1, "freihand-truth", text, EVAL_SOURCE, bad="warning")
