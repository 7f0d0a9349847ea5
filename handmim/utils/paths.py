"""Files that come with the package: in it where a wheel was installed, beside it in a checkout."""

import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent
IS_CHECKOUT = not (PACKAGE / "configs").is_dir()
CONFIGS = CHECKOUT / "configs" if IS_CHECKOUT else PACKAGE / "configs"
STANDIN = (CHECKOUT / "data" if IS_CHECKOUT else PACKAGE / "assets") / "standin_right.npz"
CODE_FOLDERS = ("handmim/", "configs/", "tools/")


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the checkout of `folder`, and whether it has local changes; None outside git.
    Untracked files count where code and configs lie, since they may be what runs."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "-z", "--untracked-files=normal")
    entries = [] if status is None else status.strip("\0").split("\0")
    return {
        "git_sha": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else any(_is_change(entry) for entry in entries),
    }


def _is_change(entry: str) -> bool:
    """Whether an entry of git's short status may change what runs."""
    is_untracked, path = entry.startswith("?? "), entry[3:]
    return path.startswith(CODE_FOLDERS) if is_untracked else bool(entry)
