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

from handmim.check.environment import check_environment, check_hand
from handmim.check.freihand import check_freihand
from handmim.check.ho3d import check_ho3d
from handmim.check.images import check_crops, check_keypoints
from handmim.utils.arguments import at_least
from handmim.utils.config import resolved
from handmim.utils.console import print_table
from handmim.utils.files import write_atomic
from handmim.utils.findings import Finding

COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def doctor(cfg: DictConfig) -> int:
    """Check, print, and perhaps write; the exit code is 1 when there is an error."""
    plain = resolved(cfg)
    sections = {}
    for title, findings in check_all(plain):
        sections[title] = findings
        print_table(findings_table(title, findings))
    counts = totals([finding for findings in sections.values() for finding in findings])
    text = f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} ok"
    Console().print(text, soft_wrap=True)
    if plain["report"] is not None:
        content = {
            "totals": counts,
            "sections": {k: [dataclasses.asdict(f) for f in v] for k, v in sections.items()},
        }
        write_atomic(Path(plain["report"]), json.dumps(content, indent=2) + "\n")
    return 1 if counts["error"] else 0


def check_all(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[Finding]]]:
    """Titles and findings by the settings of configs/doctor.yaml, each part as soon as it is done.

    Raises: ValueError for settings that make no sense.
    """
    num, full, hand = settings["num_checked"], settings["full"], settings["hand"]
    at_least(1, num_checked=num)
    root, annotations = (settings["keypoints"][key] for key in ("root", "annotations"))
    if (root is None) != (annotations is None):
        raise ValueError("give both keypoints.root=DIR and keypoints.annotations=FILE, or neither")
    yield "environment", check_environment(settings["paths"]["data_dir"])
    findings, arrays = check_hand(hand["path"], hand["left_shapedirs"])
    yield f"hand model {hand['path']}", findings
    if (folder := settings["freihand"]) is not None:
        yield f"FreiHAND {folder}", check_freihand(Path(folder), arrays, num, full=full)
    for version in (2, 3):
        if (folder := settings[f"ho3d_v{version}"]) is not None:
            found = check_ho3d(Path(folder), version, arrays, num, full=full)
            yield f"HO-3D version {version} {folder}", found
    if root is not None and annotations is not None:
        found = check_keypoints(Path(root), Path(annotations), num, full=full)
        yield f"keypoints {annotations}", found
    if (folder := settings["crops"]) is not None:
        yield f"crops {folder}", check_crops(Path(folder), sys.maxsize if full else num)


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
