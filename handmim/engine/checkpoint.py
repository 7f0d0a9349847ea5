"""Checkpoints: whole or absent, loadable without running code, checked before they are resumed."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from handmim.utils.config import differences, flatten
from handmim.utils.torch_files import read_torch

log = logging.getLogger(__name__)

FORMAT = 2  # 2: hands are identified by their arrays, config has a `hand` node
LAST, BEST = "last.pt", "best.pt"


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
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path} (checkpoint=, resume=)")
    state = read_torch(path, "a checkpoint (checkpoint=, resume=)", map_location=map_location)
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


# What may differ between the two halves of a run: names, places, machines, how often to look.
FREE = (
    "name",
    "resume",
    "overwrite",
    "paths",
    "machine",
    "probe",
    "alarms",
    "eval_every",
    "num_pictures",
    "label_ids",  # a file: its ids are compared by their hash
)
FREE_TRAINER = (
    "check_finite_every",
    "nonfinite",
    "max_unreadable",
    "num_workers",
    "log_every",
    "save_every",
    "keep_every",
    "picture_every",
    "stop_after",
    "keep_best",
    "stop_patience",
)
# Files may have moved: their content is compared by hashes and counts.
FREE_DATA = (
    "cache_dir", "num_workers", "num_val", "root", "annotations", "hand_path", "val", "test",
    "benchmark", "placement",
)  # fmt: skip


def _decides(path: str) -> bool:
    parts = path.split(".")
    if parts[0] == "machine":
        return parts[1:] == ["precision"]
    if parts[0] == "trainer":
        return parts[1] not in FREE_TRAINER
    if parts[0] == "data":
        return not set(parts) & set(FREE_DATA)
    if path.endswith("hand.path"):
        return False
    return parts[0] not in FREE


# Digests of data by what names them; a checkpoint may lack them.
DATA = {"data_sha256": "training data", "val_sha256": "validation data that best.pt is chosen by"}
OPTIONS = {
    "data_sha256": "data.root, data.annotations",
    "val_sha256": "data.root, data.val, or trainer.keep_best=null",
}


def _check_same_data(there: dict[str, Any], here: dict[str, Any], path: Path) -> None:
    """Compare digests of data and take them out of both."""
    for key, what in DATA.items():
        saved, own = there.pop(key, None), here.pop(key, None)
        if own is not None and saved is None:
            log.warning("%s does not say which %s it knew: they are not compared", path, what)
        elif own is not None and saved != own:
            raise ValueError(
                f"{path} was trained with other {what} ({saved[:12]} there, {own[:12]} here): "
                f"restore them ({OPTIONS[key]}), or start another run (name=...)"
            )


def check_same_run(
    saved: dict[str, Any], identity: dict[str, Any], config: dict[str, Any], path: Path
) -> None:
    """Refuse to resume when what decides the result has changed: data order, schedules, any setting
    of the method.

    Args:
        saved: the checkpoint.
        identity: facts of the run that goes on.
        config: its resolved config.
        path: of the checkpoint, for the message.
    Raises: ValueError for other data, or listing every other difference.
    """
    there, here = dict(saved["identity"]), dict(identity)
    _check_same_data(there, here, path)
    there |= {k: v for k, v in flatten(saved["config"]).items() if _decides(k)}
    here |= {k: v for k, v in flatten(config).items() if _decides(k)}
    if differing := differences(there, here):
        raise ValueError(
            f"{path} cannot be resumed exactly ({'; '.join(differing)}): restore these settings, "
            "or start another run from its weights (name=..., init_from=...)"
        )
