"""JSON files: read whole or refused with one sentence, numbers to arrays and back; JSON lines of
scalars by step, each with a CRC-32 of its own."""

import gc
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from handmim.utils.findings import shown

log = logging.getLogger(__name__)

MAX_MB = 2048.0  # label files of the largest public hand sets are below 1.7 GB
DECIMALS = 7  # of written numbers
CRC = "crc32"
_BLANK_BRACKETS = bytes.maketrans(b"[]", b"  ")


def read_json(path: str | Path, *, max_mb: float = MAX_MB) -> Any:
    """Read a JSON file of any Unicode encoding, with or without a byte order mark.

    Raises: FileNotFoundError; ValueError for anything that is no JSON of `max_mb` at most.
    """
    path = Path(path)
    if not path.is_file():
        reason = "is no regular file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {reason}")
    size_mb = path.stat().st_size / 1e6
    if size_mb > max_mb:
        raise ValueError(f"{path} has {size_mb:.0f} MB, the bound is {max_mb:g} MB")
    return parse_json(path.read_bytes(), str(path))


def read_object(path: str | Path, *, needs: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object with some keys; ValueError for anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, an object is required")
    missing = [key for key in needs if key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return content


def parse_json(raw: bytes, name: str) -> Any:
    """Parse JSON text in UTF-8, UTF-16 or UTF-32; ValueError with the name of its source."""
    if not raw.strip():
        raise ValueError(f"{name} is empty, JSON is required")
    was_enabled = gc.isenabled()
    gc.disable()  # it would visit millions of new lists again and again
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(error.doc.rstrip())
        raise ValueError(
            f"{name} {'is cut off' if is_cut else 'is no JSON'}: {error.msg} at line "
            f"{error.lineno}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:  # no text, too many digits, too many brackets
        reason = str(error).partition(";")[0]  # without advice about Python
        raise ValueError(f"{name} is no JSON that can be read: {reason}") from error
    finally:
        if was_enabled:
            gc.enable()


def parse_numbers(text: bytes) -> NDArray[np.float64]:
    """Float64 numbers [n] of a JSON list or a part of one; brackets are not checked.

    NaN and Infinity are numbers; the integer -0 may be 0, as in `json`. ValueError for other
    content.
    """
    flat = text.translate(_BLANK_BRACKETS)
    try:
        parsed = cast(simdjson.Array, simdjson.Parser().parse(b"[" + flat + b"]"))
        return np.frombuffer(parsed.as_buffer(of_type="d"), np.float64)
    except (ValueError, TypeError, RuntimeError):  # NaN, numbers beyond float64, or no numbers
        if b"_" in flat:  # Python's own way to write numbers
            raise ValueError("a number holds an underscore") from None
        return np.array([float(word) for word in flat.split(b",")])


def rows_text(rows: NDArray[np.floating]) -> bytes:
    """Finite rows [n, k] as a list of lists, rounded to `DECIMALS`, without white space."""
    exact = np.asarray(rows, np.float64)
    # beyond this size float64 has no more decimals to round
    rounded = np.where(np.abs(exact) < 9e8, np.round(exact, DECIMALS) + 0.0, exact)
    return orjson.dumps(np.ascontiguousarray(rounded), option=orjson.OPT_SERIALIZE_NUMPY)


def row_line(row: Mapping[str, float]) -> str:
    """A row as a line of JSON, its CRC-32 last, newline included."""
    text = json.dumps(dict(row))
    return f'{text[:-1]}, "{CRC}": "{zlib.crc32(text.encode()):08x}"}}\n'


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a scalars.jsonl; a missing file has none. A row that is torn by a kill, damaged, no
    object of numbers or without `step` is dropped, which one warning says."""
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
        log.warning("%s: dropped %d rows: %s", path, len(dropped), shown(dropped))
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
