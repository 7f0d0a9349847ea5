"""Checkpoints: whole or absent, loadable without running code, checked before they are resumed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from handmim.utils.checksums import CHECKED, CheckedWriter
from handmim.utils.config import differences, flatten
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
        before: called once all is written, before it takes the place of the previous file.
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


# What may differ between the two halves of a run: names, places, machines, how often to look.
FREE = (
    "name",
    "debug",
    "resume",
    "overwrite",
    "paths",
    "machine",
    "probe",
    "collapse",
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
    "image_every",
    "picture_every",  # of older checkpoints
    "stop_after",
    "keep_best",
    "stop_patience",
    "keep_last",
    "extend",
)
# Files may have moved: their content is compared by hashes and counts.
FREE_DATA = (
    "cache_dir", "num_workers", "num_val", "root", "annotations", "hand_path", "val", "test",
    "benchmark", "placement", "max_megapixels", "exclude", "include_all",
)  # fmt: skip


LENGTH = ("max_steps", "trainer.max_steps")  # what trainer.extend leaves free


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
    saved: dict[str, Any],
    identity: dict[str, Any],
    config: dict[str, Any],
    path: Path,
    *,
    extend: bool = False,
) -> None:
    """Refuse to resume when what decides the result has changed: data order, schedules, any setting
    of the method.

    Args:
        saved: the checkpoint.
        identity: facts of the run that goes on.
        config: its resolved config.
        path: of the checkpoint, for the message.
        extend: the number of steps may differ.
    Raises: ValueError for other data, or listing every other difference.
    """
    there, here = dict(saved["identity"]), dict(identity)
    _check_same_data(there, here, path)
    there |= {k: v for k, v in flatten(saved["config"]).items() if _decides(k)}
    here |= {k: v for k, v in flatten(config).items() if _decides(k)}
    for key in {
        key for key in there if f"trainer.{key}" in there
    }:  # by its key in the config alone
        there.pop(key), here.pop(key, None)
    free = LENGTH if extend else ()
    differing = [words for words in differences(there, here) if words.split(":")[0] not in free]
    if differing:
        key = next((key for key in ("init", "init_from") if key in config), "init_from")
        longer = ""
        if any(words.startswith(LENGTH) for words in differing):
            longer = ", go on under the schedules of the new length (trainer.extend=true)"
        raise ValueError(
            f"{path} cannot be resumed exactly ({'; '.join(differing)}): restore these settings"
            f"{longer}, or start another run from its weights (name=..., {key}={path})"
        )
