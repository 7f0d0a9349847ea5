"""numba's `njit`, whose machine code is kept by a hash of all kernels' sources: numba compares the
file of a kernel, not those of kernels that it calls."""

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


if not os.environ.get("NUMBA_CACHE_DIR"):
    is_ours = os.access(PACKAGE, os.W_OK)
    folder = PACKAGE / "__pycache__" if is_ours else Path.home() / ".cache" / "handmim"
    numba.config.CACHE_DIR = str(folder / f"kernels-{sources_digest()}")  # type: ignore[attr-defined]

njit = numba.njit
