"""Checkpoints: whole or absent, loadable without running code; those of somebody else hold plain
values of known kinds and build our own parts alone."""

import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handmim.utils.checked_files import CHECKED, CheckedWriter
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
    """Write tensors and plain values with a checksum; an interruption leaves the previous file,
    before whose replacement `before` is called. Plain `torch.load` reads the file too.

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


def checkpoints_of(run_dir: Path, resume: str) -> list[Path]:
    """Files that a run may go on from ("never", "auto" or a checkpoint), likely the newest first.
    Raises: FileExistsError for "auto" where there are exported weights alone."""
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
    """Path and content of what a run is resumed from: last.pt where it is whole, else the newest
    whole checkpoint; None where there is nothing. The log says which were passed over and why.

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
        number = path.stem.removeprefix("step_")
        if whole is not None and number.isdigit() and int(number) <= whole[1]["step"]:
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


# What configs build, by section: constructors of parts. They write nowhere but below a cache_dir.
PARTS = (
    "handmim.models.", "handmim.losses.", "handmim.objectives.", "handmim.tasks.", "handmim.data.",
    "handmim.hand.model.", "handmim.hand.adapters.", "handmim.engine.optim.",
    "handmim.diagnostics.", "torch.optim.",
)  # fmt: skip
SECTIONS = {
    "task": tuple(part for part in PARTS if part not in ("handmim.data.", "handmim.diagnostics.")),
    "hand": ("handmim.hand.model.", "handmim.hand.adapters."),
    "augment": ("handmim.data.augment.", "handmim.data.pixels."),
}
# What rebuilding a model reads, beside what each part checks of its own arguments.
OF_MODELS: dict[str, type] = {
    "step": int, "meta": dict, "task": dict, "config": dict,
    "config.hand": dict, "config.hand.path": str,
    "config.task": dict, "config.task._target_": str,
    "config.task.backbone": dict, "config.task.backbone._target_": str,
    "config.task.head": dict, "config.task.head._target_": str,
    "config.augment": dict, "config.augment._target_": str,
    "config.augment.img_px": int, "config.augment.scale": list,
}  # fmt: skip
OF_RUNS: dict[str, type] = {"config.name": str, "config.seed": int, "config.data": dict}
MAX_DEPTH, MAX_LEAVES = 32, 100_000
MAX_SETTING = 4096  # sides in pixels, widths and counts, where no tensor of the file is larger
SIZED = ("backbone", "head", "augment")


def check_saved(saved: Mapping[str, Any], path: Any) -> None:
    """Refuse the content of a checkpoint from which no model can be rebuilt safely: ValueError."""
    require(saved, {"config": dict, "config.task": dict}, path)
    if "head" not in saved["config"]["task"]:
        raise ValueError(f"{path} is a pretraining checkpoint: fine-tune it first")
    check_targets(saved["config"], path)
    require(saved, OF_MODELS, path)
    hand = saved["meta"].get("hand_sha256")
    if saved["step"] < 0 or not isinstance(hand, str | None):
        raise ValueError(f"{path} has step {saved['step']} and hand_sha256 {hand!r}: refused")
    if wrong := [k for k, v in saved["task"].items() if not isinstance(v, Tensor)]:
        raise ValueError(f"{path} holds no tensor at task.{wrong[0]}")
    _check_sizes(saved, path)


def require(saved: Mapping[str, Any], kinds: Mapping[str, type], path: Any) -> None:
    """Raises: ValueError naming the first entry that a checkpoint lacks, by dotted name, or that is
    of another kind."""
    for name, kind in kinds.items():
        node: Any = saved
        for key in name.split("."):
            if not isinstance(node, Mapping) or key not in node:
                raise ValueError(
                    f"{path} is no whole checkpoint of this project: {name} is missing"
                )
            node = node[key]
        if not isinstance(node, kind) or isinstance(node, bool):
            raise ValueError(
                f"{path} holds {str(node)[:60]!r} at {name}, {kind.__name__} is required"
            )


def check_targets(config: Any, path: Any = "the checkpoint") -> None:
    """Refuse a checkpoint's config that is no plain resolved one, or builds anything but our own
    parts.

    A target must lie in `PARTS`, or in those of its section, by its path and by where it is
    defined: a path may not lead through one of our modules to what it imports
    (`handmim.data.crops.os.system`).

    Raises: ValueError naming the target.
    """
    for keys, value in plain_leaves(config, path):
        name, text = ".".join(keys), str(value)
        if "${" in text or text == "???":  # saved configs are resolved
            raise ValueError(f"{path}: its config holds {text[:60]!r} ({name}): refused")
        if "_args_" in keys:  # arguments without a name would escape checks by name
            raise ValueError(f"{path}: its config holds arguments without names ({name}): refused")
        if "cache_dir" in keys and keys[0] not in ("data", "probe"):
            raise ValueError(f"{path}: its config holds a folder to write ({name}): refused")
        if "_target_" not in keys:
            continue
        allowed = SECTIONS.get(keys[0], PARTS)
        owner = text.startswith(allowed) and _defined_in(text)
        if not owner or not f"{owner}.".startswith(PARTS):
            raise ValueError(f"{path}: its config builds {text[:60]!r} ({name}): refused")


def plain_leaves(config: Any, path: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Leaves of nested dicts and lists and their keys, within bounds.

    Raises: ValueError for a config that refers to itself, is too large or holds other values.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), config)]
    for _ in range(MAX_LEAVES):
        if not waiting:
            return
        keys, node = waiting.pop()
        name = ".".join(keys)
        if len(keys) > MAX_DEPTH:
            break
        if isinstance(node, dict):
            if wrong := [key for key in node if not isinstance(key, str)]:
                raise ValueError(f"{path}: its config has the key {wrong[0]!r} ({name}): refused")
            waiting += [((*keys, key), value) for key, value in node.items()]
        elif isinstance(node, (list, tuple)):
            waiting += [((*keys, str(i)), value) for i, value in enumerate(node)]
        elif node is None or isinstance(node, (bool, int, float, str)):
            yield keys, node
        else:
            raise ValueError(f"{path}: its config holds a {type(node).__name__} ({name}): refused")
    raise ValueError(
        f"{path}: its config nests more than {MAX_DEPTH} deep, refers to itself or has more than "
        f"{MAX_LEAVES} entries: refused"
    )


def _check_sizes(saved: Mapping[str, Any], path: Any) -> None:
    """Refuse numbers that would build more than the file has tensors for."""
    largest = max((max(v.shape, default=0) for v in saved["task"].values()), default=0)
    bound = max(largest, MAX_SETTING)
    for keys, value in plain_leaves(saved["config"], path):
        of_model = keys[0] in ("task", "augment") and set(keys) & set(SIZED)
        is_side = keys[0] == "data" and keys[-1].endswith("_px")
        if (of_model or is_side) and isinstance(value, (int, float)) and not abs(value) <= bound:
            raise ValueError(
                f"{path}: its config has {'.'.join(keys)}={value:g}, its tensors allow {bound} at "
                "most: refused"
            )


def check_fits(there: Mapping[str, Tensor], here: Mapping[str, Tensor], path: Any) -> None:
    """Raises: ValueError naming the first tensor of a checkpoint that its own config builds
    otherwise."""
    for name in sorted(there.keys() | here.keys()):
        shapes = [tuple(side[name].shape) if name in side else None for side in (there, here)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path}: its config does not fit its tensors: {name} is {shapes[0] or 'missing'}, "
                f"the config builds {shapes[1] or 'none'}"
            )


def _defined_in(path: str) -> str | None:
    """Module that defines the class or class method of a dotted path; None when there is none."""
    try:
        found: Any = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None
    is_part = isinstance(found, type) or isinstance(getattr(found, "__self__", None), type)
    return found.__module__ if is_part else None
