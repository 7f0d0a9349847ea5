"""All checks in turn, those of photos among them, and their findings as tables and as JSON."""

import dataclasses
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from handmim.check.benchmarks import check_freihand, check_ho3d, decoded_sizes
from handmim.check.environment import check_environment, check_hand
from handmim.data.annotations import FORM
from handmim.data.crops import find_photos, labelled_benchmarks
from handmim.data.keypoints import read_photos
from handmim.hand.skeleton import NUM_JOINTS
from handmim.images.files import ENDINGS
from handmim.images.formats import printable
from handmim.pipelines.preflight import preflight
from handmim.utils.arguments import at_least
from handmim.utils.config import resolved
from handmim.utils.console import print_table
from handmim.utils.files import write_atomic
from handmim.utils.findings import Finding, Level, Notes, spread

COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}
TINY_PX = 48  # shorter side, below which there is nothing to learn at 224 px
MAX_HASHED = 20_000
MANY = 0.01  # share of duplicates that is worth a warning


def doctor(cfg: DictConfig) -> int:
    """Check, print, and perhaps write; the exit code is 1 when there is an error."""
    preflight(cfg, names=("report",))
    plain, sections = resolved(cfg), dict[str, list[Finding]]()
    for title, findings in check_all(plain):
        sections[title] = findings
        print_table(findings_table(title, findings))
    counts = totals([finding for findings in sections.values() for finding in findings])
    text = f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} ok"
    Console().print(text, soft_wrap=True)
    if plain["report"] is not None:
        listed = {k: [dataclasses.asdict(f) for f in v] for k, v in sections.items()}
        content = json.dumps({"totals": counts, "sections": listed}, indent=2)
        write_atomic(Path(plain["report"]), content + "\n")
    return 1 if counts["error"] else 0


def check_all(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[Finding]]]:
    """Titles and findings by the settings of configs/doctor.yaml, each part as soon as it is done.
    Raises: ValueError for settings that make no sense."""
    num, full, hand = settings["num_checked"], settings["full"], settings["hand"]
    at_least(1, num_checked=num)
    num_decoded = sys.maxsize if full else num
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
        found = check_keypoints(Path(root), Path(annotations), num_decoded)
        yield f"keypoints {annotations}", found
    if (folder := settings["crops"]) is not None:
        yield f"crops {folder}", check_crops(Path(folder), num_decoded)


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


def check_crops(root: Path, num_checked: int) -> list[Finding]:
    """Findings on a tree of unlabeled images, `num_checked` of which are decoded: what
    `data=folder` reads and leaves out."""
    notes = Notes("crops", "look at the files named")
    fix = f"name a folder with image files ({' '.join(ENDINGS)}): crops=DIR"
    with notes.guard("images", fix):
        tree = find_photos(root)
        names, account = tree.names, tree.account()
        notes.ok("images", f"{len(names)} images below {printable(str(root))}")
        if account is not None:
            bad = f"{notes.fix}; pretraining does not read them"
            notes.judge(not tree.is_remarkable, "left-out", account, bad, bad="warning")
        for text in labelled_benchmarks(tree):
            notes.warning("benchmark", text, "read it as a labelled dataset, or exclude it")
        for text in tree.remarks:
            notes.warning("maps", text, "name the folder of the photos: crops=DIR")
        with notes.guard("size"):
            chosen = {names[i]: root / names[i] for i in spread(len(names), num_checked)}
            bad = "they are left out of training; delete them or copy them again"
            sizes = decoded_sizes(notes, chosen, root.name, bad, "warning")
            tiny = [printable(name) for name, size in sizes.items() if min(size) < TINY_PX]
            bad = "leave them out: they are enlarged to data.image_px and teach nothing"
            text = f"images have a shorter side below {TINY_PX} px"
            notes.count(tiny, len(sizes), "size", text, bad, "warning")
        with notes.guard("duplicates"):
            _duplicates(notes, root, names)
    return notes.findings


def _duplicates(notes: Notes, root: Path, names: list[str]) -> None:
    """Only files of one size can be the same, so few are read."""
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for i in spread(len(names), MAX_HASHED):
        by_size[(root / names[i]).stat().st_size].append(names[i])
    first: dict[bytes, str] = {}
    pairs = []
    for name in (n for same in by_size.values() if len(same) > 1 for n in same):
        digest = hashlib.blake2b((root / name).read_bytes(), digest_size=16).digest()
        if first.setdefault(digest, name) != name:
            pairs.append(f"{name} = {first[digest]}")
    num = min(len(names), MAX_HASHED)
    bad: Level = "warning" if len(pairs) > MANY * num else "ok"
    fix = "copies count double in training: delete them"
    notes.count(pairs, num, "duplicates", "files are copies of others", fix, bad)


def check_keypoints(root: Path, annotations: Path, num_checked: int) -> list[Finding]:
    """Findings on photos with 21 keypoints in a COCO-style JSON file, all of which is checked;
    `num_checked` images are decoded."""
    notes = Notes("keypoints", f"{FORM}: keypoints.annotations=FILE.json")
    with notes.guard("file"):
        content = read_photos(root, annotations, notes, "subject")
        text = f"{len(content.hands)} hands of {NUM_JOINTS} keypoints, {len(content.images)} images"
        notes.ok("count", text)
        if content.hands and not notes.failed("decode", "images"):
            used = sorted({hand.image for hand in content.hands})
            chosen = [used[i] for i in spread(len(used), num_checked)]
            names = [content.images[i]["file_name"] for i in chosen]
            fix = "take them out of the annotations, or copy them again"
            decoded_sizes(notes, {name: root / name for name in names}, annotations.name, fix)
        scores = [hand.scores for hand in content.hands if hand.scores is not None]
        if scores:
            mean = f"{np.mean(scores):.2f} on average"
            notes.ok("scores", f"{len(scores)} hands have confidences of keypoints, {mean}")
    return notes.findings
