"""Small helpers for composed configs."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, open_dict


def drop_unbuilt(parts: DictConfig) -> None:
    """Remove settings of parts that were not chosen.

    An experiment may tune a loss; `loss=[...]` without that loss leaves its settings behind,
    without a `_target_`.

    Args:
        parts: mapping of named parts, changed in place.
    """
    with open_dict(parts):
        for name in [name for name in parts if "_target_" not in parts[name]]:
            del parts[name]


def set_everywhere(node: DictConfig, key: str, value: Any) -> None:
    """Give every `key` below a node, at any depth, the same value; in place."""
    for name, child in node.items():
        if name == key:
            node[name] = value
        elif isinstance(child, DictConfig):
            set_everywhere(child, key, value)


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested plain containers by dotted path."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(config, dict) and config:
        items = config.items()
    elif isinstance(config, (list, tuple)) and config:
        items = enumerate(config)
    else:
        return {path: config}
    return {
        k: v for key, value in items for k, v in flatten(value, f"{path}.{key}".lstrip(".")).items()
    }
