"""Rows of scalars by step as JSON lines, each with a CRC-32 of its own."""

import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

CRC = "crc32"
NUM_SHOWN = 3  # rows named in a message


def row_line(row: Mapping[str, float]) -> str:
    """A row as a line of JSON, its CRC-32 last, newline included."""
    text = json.dumps(dict(row))
    return f'{text[:-1]}, "{CRC}": "{zlib.crc32(text.encode()):08x}"}}\n'


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a scalars.jsonl; a missing file has none.

    A row that is torn (a kill left it), damaged, no object of numbers or without `step` is dropped,
    and one warning names such rows. A row without CRC-32 is taken as it is.
    """
    if not path.is_file():
        return []
    rows, dropped = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                rows.append(_row(line))
            except (ValueError, RecursionError) as error:
                dropped.append(f"line {number} ({error})")
    if dropped:
        more = f" and {len(dropped) - NUM_SHOWN} more" if len(dropped) > NUM_SHOWN else ""
        log.warning("%s: dropped %s%s", path, ", ".join(dropped[:NUM_SHOWN]), more)
    return rows


def _row(line: bytes) -> dict[str, float]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError("torn, or no JSON") from error
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, an object is required")
    crc = row.pop(CRC, None)
    if crc is not None and crc != f"{zlib.crc32(json.dumps(row).encode()):08x}":
        raise ValueError("another content than was written")
    if type(row.get("step")) is not int:
        raise ValueError("no integer step")
    other = [key for key, value in row.items() if type(value) not in (int, float)]
    if other:
        raise ValueError(f"no number as {other[0][:40]!r}")
    return row
