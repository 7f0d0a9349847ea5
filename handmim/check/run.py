"""All checks in turn, and their findings as tables on the terminal and as a JSON file."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from handmim.check.environment import check_environment
from handmim.check.freihand import check_freihand
from handmim.check.hand import check_hand
from handmim.check.ho3d import check_ho3d
from handmim.check.images import check_crops, check_keypoints
from handmim.utils.config import resolved
from handmim.utils.console import print_table
from handmim.utils.files import write_atomic
from handmim.utils.findings import Finding

COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


PARTS = ("freihand", "ho3d_v2", "ho3d_v3", "keypoints", "crops", "full")


def doctor(cfg: DictConfig) -> int:
    """Check, print, and perhaps write; the exit code is 1 when there is an error.

    Args:
        cfg: composed from configs/doctor.yaml.
    """
    plain = resolved(cfg)
    parts = {key: plain[key] for key in PARTS}
    sections = {}
    for title, findings in check_all(
        plain["hand"], plain["paths"]["data_dir"], plain["num_checked"], **parts
    ):
        sections[title] = findings
        print_table(findings_table(title, findings))
    counts = totals([finding for findings in sections.values() for finding in findings])
    text = f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} ok"
    Console().print(text, soft_wrap=True)
    if plain["report"] is not None:
        write_findings(plain["report"], sections)
    return 1 if counts["error"] else 0


def check_all(
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
        num_checked: samples, images and metas of each part that are checked closely.
        freihand, ho3d_v2, ho3d_v3: roots of datasets; None leaves one out.
        keypoints: root and annotations, or None in both.
        crops: folder of unlabeled images.
        full: decode every image, instead of `num_checked` of each part.
    Raises: ValueError for settings that make no sense.
    """
    if num_checked < 1:
        raise ValueError(f"num_checked must be >= 1, got {num_checked}")
    root, annotations = ((keypoints or {}).get(key) for key in ("root", "annotations"))
    if (root is None) != (annotations is None):
        raise ValueError("give both keypoints.root=DIR and keypoints.annotations=FILE, or neither")
    yield "environment", check_environment(data_dir)
    findings, arrays = check_hand(hand["path"], hand["left_shapedirs"])
    yield f"hand model {hand['path']}", findings
    if freihand is not None:
        yield (
            f"FreiHAND {freihand}",
            check_freihand(Path(freihand), arrays, num_checked, full=full),
        )
    for version, folder in ((2, ho3d_v2), (3, ho3d_v3)):
        if folder is not None:
            found = check_ho3d(Path(folder), version, arrays, num_checked, full=full)
            yield f"HO-3D version {version} {folder}", found
    if root is not None and annotations is not None:
        found = check_keypoints(Path(root), Path(annotations), num_checked, full=full)
        yield f"keypoints {annotations}", found
    if crops is not None:
        yield f"crops {crops}", check_crops(Path(crops), sys.maxsize if full else num_checked)


def findings_table(title: str, findings: Sequence[Finding]) -> Table:
    """Level, name, text and fix; findings that are well share a row per name."""
    rows: dict[object, Finding] = {}
    for index, finding in enumerate(findings):
        key = finding.name if finding.level == "ok" else index
        text = f"{rows[key].text}; {finding.text}" if key in rows else finding.text
        rows[key] = dataclasses.replace(finding, text=text)
    table = Table(title=Text(title), title_justify="left", expand=True)
    table.add_column("level", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", ratio=1)
    for finding in rows.values():
        found = Text(finding.text)
        if finding.fix:
            found.append(f"\nfix: {finding.fix}", style="bold")
        level = Text(finding.level, style=COLOURS[finding.level])
        table.add_row(level, Text(finding.name), found)
    return table


def totals(findings: Sequence[Finding]) -> dict[str, int]:
    """Number of findings of each level."""
    counts = Counter(str(finding.level) for finding in findings)
    return {level: counts[level] for level in COLOURS}


def write_findings(path: str | Path, sections: Mapping[str, Sequence[Finding]]) -> None:
    """Write everything as JSON, whole or not at all."""
    content = {
        "totals": totals([finding for findings in sections.values() for finding in findings]),
        "sections": {k: [dataclasses.asdict(f) for f in v] for k, v in sections.items()},
    }
    write_atomic(Path(path), json.dumps(content, indent=2) + "\n")
