"""Copies of a table for others to read: named after it, and without this machine's places."""

import re
import shutil
from pathlib import Path
from typing import Any

from handmim.ablation.files import json_text, read_json
from handmim.utils.files import write_atomic

FILES = ("table.md", "table.csv", "plot.png", "cells.json")
CURVE = "curve.png"  # of tables that ask for curves
START = "start"  # its words are weights, not overrides
PLACE = r"(?:(?:[A-Za-z]:)?[/\\]|~)"  # begins an absolute path, a drive's path, a home
# What a value consists of: quoted text, paths, and what stands between brackets, commas, equals.
TOKEN = re.compile(
    rf"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\s*{PLACE}[^\[\]{{}},]*|[^'"\[\]{{}},=]+"""
)
# A path without quotes, perhaps after the key of a mapping or a scheme.
BARE = re.compile(rf"^(\s*(?:[\w.]{{2,}}:\s*)?)({PLACE}.*)", re.DOTALL)


def publish(name: str, folder: Path, out: Path) -> list[Path]:
    """Copy a table's files into a folder of several.

    Args:
        name: of the table.
        folder: its own.
        out: takes <name>.md, .csv, .png and .json, and <name>-curve.png where there is one.
    """
    out.mkdir(parents=True, exist_ok=True)
    targets = {file: out / f"{name}{Path(file).suffix}" for file in FILES}
    if (folder / CURVE).is_file():
        targets[CURVE] = out / f"{name}-{CURVE}"
    for file, target in targets.items():
        if target.suffix == ".json":
            write_atomic(target, json_text(without_places(read_json(folder / file))))
        else:
            shutil.copyfile(folder / file, target)
    return list(targets.values())


def without_places(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells as others may read them: hosts go, and of absolute paths all but their last part."""
    return [
        {k: v for k, v in cell.items() if k not in ("host", "overrides")}
        | {"overrides": {k: _published(k, words) for k, words in cell["overrides"].items()}}
        for cell in cells
    ]


def _published(stage: str, words: list[str]) -> list[str]:
    if stage == START:
        return [_hidden(word) for word in words]
    pairs = (word.partition("=") for word in words)
    return [f"{key}{equals}{_hidden(value)}" for key, equals, value in pairs]


def _hidden(value: str) -> str:
    """A value of an override with `.../name` for every path, in lists and quotes as well."""
    if re.match(PLACE, value):
        return _last_part(value)
    return TOKEN.sub(lambda token: _hidden_token(token[0]), value)


def _hidden_token(token: str) -> str:
    if token[0] in "'\"":
        return token[0] + _hidden(token[1:-1]) + token[0]
    return BARE.sub(lambda found: found[1] + _last_part(found[2]), token)


def _last_part(path: str) -> str:
    separators = r"/+" if path[0] in "/~" else r"[/\\]+"
    return ".../" + re.split(separators, path.rstrip("/\\ "))[-1]
