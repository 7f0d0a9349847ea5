"""Files as tables read and write them: JSON without NaN, and digests of what files contain."""

import hashlib
import json
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from handmim.utils.config import flatten


def json_text(plain: Any) -> str:
    """Plain containers as JSON; figures that are no finite numbers become null."""
    return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Content of a JSON file; NaN and infinities, which other readers refuse, are None."""
    return json.loads(path.read_text(), parse_constant=lambda word: None)


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
