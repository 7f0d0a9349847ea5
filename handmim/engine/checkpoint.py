"""Checkpoints: whole or absent; those of others hold plain values and build our own parts alone."""

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
    before whose replacement `before` is called. Raises: OSError for a full disk."""
    with atomic_path(path) as partial:
        with CheckedWriter(partial) as file:
            torch.save({"format": FORMAT, CHECKED: "crc32", **state}, file)  # type: ignore[arg-type]
        before()


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ours; nothing in the file is executed. Raises: FileNotFoundError;
    ValueError for a foreign file, and for one with a byte that is not what was written."""
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
    """Path and content of what a run is resumed from: last.pt, else the newest whole checkpoint;
    None where there is nothing. Raises: FileNotFoundError; ValueError when none is whole."""
    paths = checkpoints_of(run_dir, resume)
    if not paths:
        return None
    if resume != "auto":
        return paths[0], load_checkpoint(paths[0])
    newest, state, faults = paths[0], {"step": -1}, list[str]()
    for path in paths:
        number = path.stem.removeprefix("step_")
        if number.isdigit() and int(number) <= state["step"]:
            continue
        try:
            other = load_checkpoint(path)
        except (FileNotFoundError, ValueError) as error:
            faults.append(str(error))
            continue
        if other["step"] > state["step"]:
            newest, state = path, other
        if path.name == LAST:
            return path, other
    if state["step"] < 0:
        how = "(resume=FILE of another folder, or resume=never overwrite=true to begin anew)"
        raise ValueError(f"no checkpoint of {run_dir} is whole: {'; '.join(faults)} {how}")
    why = "; ".join(faults) or f"there is no {LAST}"
    log.warning("%s: %s is the newest whole checkpoint", why, newest)
    return newest, state


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
    "config": dict, "config.task": dict, "config.task.head": dict, "config.task._target_": str,
    "config.task.head._target_": str, "config.task.backbone": dict,
    "config.task.backbone._target_": str, "config.hand": dict, "config.hand.path": str,
    "config.augment": dict, "config.augment._target_": str, "config.augment.img_px": int,
    "config.augment.scale": list, "step": int, "meta": dict, "task": dict,
}  # fmt: skip
OF_RUNS: dict[str, type] = {"config.name": str, "config.seed": int, "config.data": dict}
MAX_DEPTH, MAX_LEAVES = 32, 100_000
MAX_SETTING = 4096  # sides in pixels, widths and counts, where no tensor of the file is larger


def check_saved(saved: Mapping[str, Any], path: Any) -> None:
    """Refuse the content of a checkpoint from which no model can be rebuilt safely: ValueError."""
    require(saved, OF_MODELS, path)
    hand, tensors = saved["meta"].get("hand_sha256"), saved["task"]
    if saved["step"] < 0 or not isinstance(hand, str | None):
        raise ValueError(f"{path} has step {saved['step']} and hand_sha256 {hand!r}: refused")
    if wrong := [k for k, v in tensors.items() if not isinstance(v, Tensor)]:
        raise ValueError(f"{path} holds no tensor at task.{wrong[0]}")
    largest = max((side for value in tensors.values() for side in value.shape), default=0)
    check_config(saved["config"], path, max(largest, MAX_SETTING))


def require(saved: Mapping[str, Any], kinds: Mapping[str, type], path: Any) -> None:
    """Raises: ValueError naming the first entry, dotted, that is missing or of another kind."""
    for name, kind in kinds.items():
        node: Any = saved
        for key in name.split("."):
            if not isinstance(node, Mapping) or key not in node:
                raise ValueError(
                    f"{path} is no whole checkpoint of a fine-tuning: {name} is missing (one of "
                    "pretraining: fine-tune it first; an exported model names no data: data=...)"
                )
            node = node[key]
        if not isinstance(node, kind) or isinstance(node, bool):
            raise ValueError(
                f"{path} holds {str(node)[:60]!r} at {name}, {kind.__name__} is required"
            )


def check_config(config: Any, path: Any = "the checkpoint", bound: float = MAX_SETTING) -> None:
    """Refuse a config that is no plain resolved one, builds anything but our own parts, or has
    numbers that would build more than the file has tensors for: ValueError naming the entry.
    Targets lie in `PARTS`, or those of their section, by path and by where they are defined: no
    path leads through our modules to what they import (`handmim.data.crops.os.system`)."""
    for keys, value in plain_leaves(config, path):
        if keys[0] == "unlabeled":  # no checkpoint is asked for what trained beside labels
            continue
        text, fault = str(value), None
        of_model = keys[0] == "augment" or (keys[0] == "task" and {"backbone", "head"} & {*keys})
        is_size = of_model or (keys[0] == "data" and keys[-1].endswith("_px"))
        if "${" in text or text == "???":  # saved configs are resolved
            fault = f"holds {text[:60]!r}"
        elif "_args_" in keys:  # arguments without a name would escape checks by name
            fault = "holds arguments without names"
        elif "cache_dir" in keys and keys[0] not in ("data", "probe"):
            fault = "holds a folder to write"
        elif "_target_" in keys:
            allowed = SECTIONS.get(keys[0], PARTS)
            owner = text.startswith(allowed) and _defined_in(text)
            if not owner or not f"{owner}.".startswith(PARTS):
                fault = f"builds {text[:60]!r}"
        elif is_size and isinstance(value, (int, float)) and not abs(value) <= bound:
            fault = f"has {keys[-1]}={value:g}, its tensors allow {bound} at most"
        if fault is not None:
            raise ValueError(f"{path}: its config {fault} ({'.'.join(keys)}): refused")


def plain_leaves(config: Any, path: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Leaves of nested dicts and lists, and their keys. Raises: ValueError beyond bounds."""
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


def check_fits(there: Mapping[str, Tensor], here: Mapping[str, Tensor], path: Any) -> None:
    """Raises: ValueError naming the first tensor that a checkpoint's config builds otherwise."""
    for name in sorted(there.keys() | here.keys()):
        own, built = (tuple(d[name].shape) if name in d else "missing" for d in (there, here))
        if own != built:
            raise ValueError(
                f"{path}: its config does not fit its tensors: {name} is {own}, it builds {built}"
            )


def _defined_in(path: str) -> str | None:
    """Module that defines the class or class method of a dotted path; None when there is none."""
    try:
        found: Any = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None
    is_part = isinstance(found, type) or isinstance(getattr(found, "__self__", None), type)
    return found.__module__ if is_part else None
