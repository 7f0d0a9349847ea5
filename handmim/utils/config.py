"""Small helpers for composed configs."""

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
