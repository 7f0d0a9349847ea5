"""Compiled kernels and where their machine code is kept.

numba looks at the file of a kernel alone to tell whether its cached code still holds, not at the
kernels of other files that were compiled into it. So the code is kept by what all sources together
say: after any change of a kernel all of them are compiled anew, once.
"""

import hashlib
import os
from pathlib import Path

import numba

from handmim.utils.paths import PACKAGE


def sources_digest(package: Path = PACKAGE) -> str:
    """Hash of every file below a package that has a kernel, and of numba's version."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        if b"njit" in content or b"@compiled" in content:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _cache_dir() -> str:
    """Beside the sources where they can be written to, else below the user's cache."""
    beside = PACKAGE / "__pycache__"
    folder = beside if os.access(PACKAGE, os.W_OK) else Path.home() / ".cache" / "handmim"
    return str(folder / f"kernels-{sources_digest()}")


if not os.environ.get("NUMBA_CACHE_DIR"):  # else the user has said where
    numba.config.CACHE_DIR = _cache_dir()  # type: ignore[attr-defined]

njit = numba.njit
