"""Checkpoints: whole or absent, loadable without running code, checked before they are resumed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from handmim.utils.checksums import CHECKED, CheckedWriter
from handmim.utils.files import atomic_path
from handmim.utils.renames import update_targets
from handmim.utils.tensor_files import read_torch

log = logging.getLogger(__name__)

FORMAT = 2  # 2: hands are identified by their arrays, config has a `hand` node
LAST, BEST = "last.pt", "best.pt"
NUMBERED = "step_*.pt"  # copies that stay


def save_checkpoint(
    path: Path, state: dict[str, Any], *, before: Callable[[], None] = lambda: None
) -> None:
    """Write tensors and plain values with a checksum; an interruption leaves the previous file.

    Plain `torch.load` reads the file too.

    Args:
        path: of the file.
        state: to write.
        before: called once all is written, before it replaces the previous file.
    Raises: OSError for a full disk, with the bytes that are needed and free.
    """
    with atomic_path(path) as partial:
        with CheckedWriter(partial) as file:
            torch.save({"format": FORMAT, CHECKED: "crc32", **state}, file)  # type: ignore[arg-type]
        before()


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ours; nothing in the file is executed.

    Raises: FileNotFoundError; ValueError for a foreign file, and for one with a byte that is not
        what was written.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path} (checkpoint=, resume=)")
    state = read_torch(path, "a checkpoint (checkpoint=, resume=)", map_location=map_location)
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != FORMAT:
        raise ValueError(f"{path} is not a handmim checkpoint of format {FORMAT} (found {found})")
    state.pop(CHECKED, None)  # of the file, not of the run
    update_targets(state.get("config"))
    return state


def rolling(run_dir: Path, number: int) -> Path:
    """Where the checkpoint lies that was last.pt `number` saves ago; 0 is last.pt."""
    return run_dir / (f"last-{number}.pt" if number else LAST)


def checkpoints_of(run_dir: Path, resume: str) -> list[Path]:
    """Files that a run may be resumed from, the likely newest first; none for "never".

    Args:
        run_dir: its folder.
        resume: "never", "auto" or a checkpoint.
    Raises: FileExistsError for "auto" where there are exported weights alone.
    """
    if resume == "never":
        return []
    if resume != "auto":
        return [Path(resume)]
    earlier = sorted(run_dir.glob("last-*.pt")), sorted(run_dir.glob(NUMBERED), reverse=True)
    files = [run_dir / LAST, *earlier[0], run_dir / BEST, *earlier[1]]
    files = [path for path in files if path.is_file()]
    if not files and (exported := next(run_dir.glob("*.safetensors"), None)):
        raise FileExistsError(
            f"{exported} is of a run whose checkpoints are gone, so it cannot go on: take another "
            "name (name=...), or replace it (resume=never overwrite=true)"
        )
    return files


def load_newest(run_dir: Path, resume: str) -> tuple[Path, dict[str, Any]] | None:
    """What a run is resumed from: last.pt where it is whole, else the newest whole checkpoint.

    Args:
        run_dir: its folder.
        resume: "never", "auto" or a checkpoint, which has to be whole.
    Returns: path and content, None where there is nothing to resume; the log says which checkpoints
        were passed over and why.
    Raises: FileNotFoundError; ValueError when there are checkpoints, and none is whole.
    """
    paths = checkpoints_of(run_dir, resume)
    if not paths:
        return None
    if resume != "auto":
        return paths[0], load_checkpoint(paths[0])
    whole: tuple[Path, dict[str, Any]] | None = None
    faults: list[str] = []
    for path in paths:
        if whole is not None and _is_older(path, whole[1]["step"]):
            continue
        try:
            state = load_checkpoint(path)
        except (FileNotFoundError, ValueError) as error:
            faults.append(str(error))
            continue
        if path.name == LAST:
            return path, state
        if whole is None or state["step"] > whole[1]["step"]:
            whole = path, state
    if whole is None:
        raise ValueError(
            f"no checkpoint of {run_dir} is whole: {'; '.join(faults)} (resume=FILE of another "
            "folder, or resume=never overwrite=true to begin anew)"
        )
    why = "; ".join(faults) or f"there is no {LAST}"
    log.warning("%s: %s is the newest whole checkpoint", why, whole[0])
    return whole


def _is_older(path: Path, step: int) -> bool:
    """Whether a numbered copy is older than a step, by its name."""
    number = path.stem.removeprefix("step_")
    return number.isdigit() and int(number) <= step
