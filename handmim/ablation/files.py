"""Files as tables read and write them: JSON without NaN, and digests of what files contain."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from handmim.utils import json_files
from handmim.utils.config import flatten

SHA256 = "sha256"  # of a record's other fields


def json_text(plain: Any) -> str:
    """Plain containers as JSON; figures that are no finite numbers become null."""
    return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Content of a JSON file; NaN and infinities, which other readers refuse, are None.

    Raises: FileNotFoundError; ValueError naming the file.
    """
    return _finite(json_files.read_json(path))


def record_text(record: Mapping[str, Any]) -> str:
    """A record as `json_text`, with the SHA-256 of its content."""
    return json_text({**record, SHA256: _sha256(_finite(record))})


def read_record(path: Path) -> dict[str, Any]:
    """A record of `record_text`; one without a SHA-256 is taken as it is.

    Raises: FileNotFoundError; ValueError for anything else than an object, or another content than
        was written.
    """
    advice = "delete the file, and what it records runs again"
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}: {advice}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}, not an object: {advice}")
    last = next(reversed(record), None)
    written = record.pop(SHA256, None)
    rest = {key: value for key, value in record.items() if key != last}
    is_renamed = written is None and last is not None and record[last] == _sha256(rest)
    if is_renamed or (written is not None and written != _sha256(record)):
        raise ValueError(f"{path} has another content than was written to it: {advice}")
    return record


def _sha256(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _finite(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(v) for v in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def files_named(plain: Any) -> list[Path]:
    """Files that plain containers name: annotations, weights, a hand model; not folders."""
    leaves = flatten(plain).values()
    return sorted({Path(v).absolute() for v in leaves if isinstance(v, str) and os.path.isfile(v)})


def content_sha(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises: FileNotFoundError.
    """
    stat = path.stat()
    return _content_sha(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _content_sha(path: Path, size: int, mtime_ns: int) -> str:
    """Read once while size and time stand: a table asks for the same files of every cell."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
