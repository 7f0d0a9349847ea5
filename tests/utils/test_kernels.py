import shutil
from pathlib import Path

import numba

import handmim
from handmim.utils.kernels import sources_digest

PACKAGE = Path(handmim.__file__).parent


def test_machine_code_is_kept_by_what_all_sources_say(tmp_path):
    assert sources_digest() in numba.config.CACHE_DIR
    copy = tmp_path / "handmim"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert sources_digest(copy) == sources_digest()
    kernel = copy / "geometry" / "align.py"
    kernel.write_text(kernel.read_text() + "\n# changed\n")
    assert sources_digest(copy) != sources_digest()


def test_no_kernel_is_compiled_past_it():
    found = [
        path
        for path in PACKAGE.rglob("*.py")
        if "from numba import njit" in path.read_text() or "numba import jit" in path.read_text()
    ]
    assert not found
