"""Lists of Hydra overrides: joining them, and what of a composed config decides a result."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig

from handmim.utils.config import resolved

# Where things are, how they are watched and how fast they run: results are the same.
FREE = (
    "name", "resume", "overwrite", "paths", "machine", "init_from", "eval_every", "collapse",
    "alarms", "hydra", "debug",
)  # fmt: skip
FREE_LEAVES = (
    "cache_dir", "num_workers", "log_every", "save_every", "keep_every", "image_every",
    "check_finite_every", "stop_after", "keep_best", "stop_patience",
    "keep_last", "extend", "nonfinite", "max_unreadable", "max_megapixels", "exclude",
    "include_all",
)  # fmt: skip
USUAL_PRECISION = "32-true"
PROBED = ("probe", "task", "precision")  # parts of a pretraining config that decide its probe


def key_of(override: str) -> str:
    """What an override sets: `+a.b=1`, `~a.b` and `a.b=2` all speak of a.b."""
    return override.split("=", 1)[0].lstrip("+~")


def joined(*lists: Iterable[str]) -> tuple[str, ...]:
    """One list of overrides in which the last word on each key counts.

    Hydra refuses two choices of one group; here a row may revise what its table said.
    """
    last: dict[str, str] = {}
    for override in (word for words in lists for word in words):
        last.pop(key_of(override), None)
        last[key_of(override)] = override
    return tuple(last.values())


def decides(override: str) -> bool:
    """Whether an override changes results, rather than places and speed.

    The usual precision does not, said or not.
    """
    if key_of(override) == "machine.precision":
        return override != f"machine.precision={USUAL_PRECISION}"
    return key_of(override).split(".")[0] not in FREE


def digest(plain: Any) -> str:
    """Twelve hex digits of plain containers; the order of keys does not matter."""
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def decisive(cfg: DictConfig) -> Any:
    """The part of a composed config that decides the result, resolved, as plain containers.

    Raises: ValueError naming what only the user knows.
    """
    plain = resolved(cfg)
    kept = {k: v for k, v in plain.items() if k not in FREE}
    precision = plain.get("machine", {}).get("precision")
    return _without(kept, FREE_LEAVES) | {"precision": precision}


def _without(node: Any, names: Sequence[str]) -> Any:
    if isinstance(node, dict):
        return {k: _without(v, names) for k, v in node.items() if k not in names}
    return [_without(v, names) for v in node] if isinstance(node, list) else node
