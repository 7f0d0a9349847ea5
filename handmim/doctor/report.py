"""Findings as tables on the terminal and as a JSON file."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from handmim.utils.files import write_atomic
from handmim.utils.findings import Finding

COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def _rows(findings: Sequence[Finding]) -> list[Finding]:
    """One row for all that is well under one name; warnings and errors stand alone."""
    rows: dict[object, Finding] = {}
    for place, finding in enumerate(findings):
        key = finding.name if finding.level == "ok" else place
        text = f"{rows[key].text}; {finding.text}" if key in rows else finding.text
        rows[key] = dataclasses.replace(finding, text=text)
    return list(rows.values())


def findings_table(title: str, findings: Sequence[Finding]) -> Table:
    """Rows of level, name and what was found, with the fix below."""
    table = Table(title=Text(title), title_justify="left", expand=True)
    table.add_column("level", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", ratio=1)
    for finding in _rows(findings):
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\nfix: {finding.fix}", style="bold")
        level = Text(finding.level, style=COLOURS[finding.level])
        table.add_row(level, Text(finding.name), text)
    return table


def totals(findings: Sequence[Finding]) -> dict[str, int]:
    """How many there are of each level."""
    counts = Counter(str(finding.level) for finding in findings)
    return {level: counts[level] for level in COLOURS}


def write_findings(path: str | Path, sections: Mapping[str, Sequence[Finding]]) -> None:
    """Write everything as JSON; the file is there as a whole or not at all."""
    path = Path(path)
    everything = [finding for findings in sections.values() for finding in findings]
    content = {
        "totals": totals(everything),
        "sections": {k: [dataclasses.asdict(f) for f in v] for k, v in sections.items()},
    }
    write_atomic(path, json.dumps(content, indent=2) + "\n")
