"""Files that come with the package: in it where a wheel was installed, beside it in a checkout."""

import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent
IS_CHECKOUT = not (PACKAGE / "configs").is_dir()
CONFIGS = CHECKOUT / "configs" if IS_CHECKOUT else PACKAGE / "configs"
ASSETS = CHECKOUT / "data" if IS_CHECKOUT else PACKAGE / "assets"
STANDIN = ASSETS / "standin_right.npz"
SMALL_MODEL = ASSETS / "handmim_small.safetensors"
CODE_FOLDERS = ("handmim/", "configs/", "tools/")


def options_of(group: str) -> list[str]:
    """Names that `GROUP=NAME` takes: files of configs/GROUP."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the checkout of `folder`, and whether it has local changes; None outside git.
    Untracked files count where code and configs lie, since they may be what runs."""
    options = ["--porcelain=v2", "--branch", "-z", "--untracked-files=normal"]
    command = ["git", "-C", str(folder), "status", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"git_sha": None, "git_dirty": None}
    lines = [line for line in done.stdout.split("\0") if line]
    sha = next((line[13:] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    changes = [line for line in lines if line[0] not in "#?" or line[2:].startswith(CODE_FOLDERS)]
    return {"git_sha": None if sha == "(initial)" else sha, "git_dirty": bool(changes)}
