"""Small helpers for composed configs."""

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
