"""Resuming a run with another number of steps: what that changes."""

from collections.abc import Iterator
from typing import Any

from handmim.engine.schedule import Schedule

TARGET = f"{Schedule.__module__}.{Schedule.__name__}"


def changed_schedules(
    config: Any, step: int, before: int, after: int
) -> dict[str, tuple[float, float]]:
    """Values at a step of those schedules of a config that another number of steps changes.

    Args:
        config: resolved plain containers.
        step: the first that is made under the new length.
        before, after: numbers of steps.
    Returns: (before, after) by the config key.
    """
    values = {
        key: (schedule(step, before), schedule(step, after))
        for key, schedule in _schedules(config, "")
    }
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def _schedules(node: Any, key: str) -> Iterator[tuple[str, Schedule]]:
    if isinstance(node, dict) and node.get("_target_") == TARGET:
        yield key, Schedule(**{k: v for k, v in node.items() if not k.startswith("_")})
    elif isinstance(node, (dict, list)):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _schedules(value, f"{key}.{name}".lstrip("."))
