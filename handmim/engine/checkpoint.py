"""Checkpoints: whole or absent, loadable without running code, checked before they are resumed."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

FORMAT = 1
LAST = "last.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; an interruption leaves the previous file as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ours; nothing in the file is executed.

    Raises: FileNotFoundError; ValueError for a damaged or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path} (checkpoint=, resume=)")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is not a handmim checkpoint of format {FORMAT} (found {found})")
    return state


def find_checkpoint(run_dir: Path, resume: str) -> Path | None:
    """The file to resume from: None for "never" and for "auto" in a folder without one."""
    if resume == "never":
        return None
    if resume == "auto":
        last = run_dir / LAST
        return last if last.is_file() else None
    return Path(resume)


def check_same_run(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Refuse to resume when what decides data order and schedules has changed.

    Raises: ValueError listing every difference.
    """
    differing = [
        f"{key}: {saved['identity'].get(key)} there, {now[key]} here"
        for key in now
        if saved["identity"].get(key) != now[key]
    ]
    if differing:
        raise ValueError(
            f"{path} cannot be resumed exactly ({'; '.join(differing)}): restore these settings, "
            "or start"
            " another run from its weights (name=..., init_from=...)"
        )
