"""Small helpers for composed configs."""

from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain containers, interpolations filled in.

    Raises: ValueError naming every value that only the user knows and has not given: "???", or ""
        where that would not replace a default.
    """
    leaves = flatten(OmegaConf.to_container(cfg))
    missing = [key for key, value in leaves.items() if value in ("???", "")]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} must be given: "
            f"{' '.join(f'{key}=...' for key in missing)} (see --help, --cfg job)"
        )
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return plain


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


def set_everywhere(node: Any, key: str, value: Any) -> None:
    """Give every `key` below a node, at any depth and in lists, the same value; in place."""
    for name, child in node.items() if isinstance(node, DictConfig) else enumerate(node):
        if name == key:
            node[name] = value
        elif isinstance(child, (DictConfig, ListConfig)):
            set_everywhere(child, key, value)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words, by key: what two flat mappings say differently, or one of them alone."""
    return [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


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


def flatten_keys(cfg: Any) -> list[str]:
    """Dotted keys of all leaves of a config, interpolations not followed."""
    return list(flatten(OmegaConf.to_container(cfg)))
