"""Names that changed: what an older command line or an older checkpoint still uses."""

from collections.abc import Mapping
from typing import Any

# Config keys (with everything below them) and options: a typed one is answered with the new one.
KEYS: dict[str, str] = {
    **{
        f"experiment={old}_{size}": f"experiment={new} size={size}"
        for old, new in (("freihand", "freihand"), ("ho3dv2", "ho3d_v2"), ("ho3dv3", "ho3d_v3"))
        for size in ("cpu", "vits", "vitb")
    },
    "views.hidden_rotation_deg": "views.shared_rotation_deg",
    "views.hidden_full_rotation_prob": "views.shared_full_rotation_prob",
    "views.hidden_scale": "views.shared_scale",
    "views.hidden_shift_ndc": "views.shared_shift_ndc",
    "trainer.picture_every": "trainer.image_every",
    "rows": "variants",
    "cell": "run",
    "setting": "dataset",
    "setting=renders_large": "dataset=renders",
    "table=without": "table=objectives",
    "table=pixels": "table=masking",
    "table=views": "table=masking",
    "alarms": "collapse",
    "alarms.deadly": "collapse.stop_on",
    "alarms.hook": "collapse",
    "alarms.stop_after": "collapse.patience",
    "alarms.thresholds": "+collapse.thresholds",
}
# Modules (with everything in them), classes and functions that checkpoints name as `_target_`.
TARGETS: dict[str, str] = {
    "handmim.engine.optim.OptimRecipe": "handmim.engine.optim.OptimizerConfig",
    "handmim.tasks.finetune": "handmim.tasks.mesh",
    "handmim.tasks.keypoint_regression": "handmim.tasks.keypoints",
    "handmim.metrics.probe": "handmim.diagnostics.readout",
    "handmim.metrics.retrieval": "handmim.diagnostics.readout",
    "handmim.tasks.alarms.CollapseAlarms": "handmim.diagnostics.collapse.CollapseDetection",
    "handmim.tasks.probing": "handmim.diagnostics.probe",
    "handmim.data.mixed": "handmim.data.datasets",
}
# Arguments by the new target: the new name, or None where the argument is gone.
ARGUMENTS: dict[str, dict[str, str | None]] = {
    "handmim.data.views.ViewMaker": {
        "hidden_rotation_deg": "shared_rotation_deg",
        "hidden_full_rotation_prob": "shared_full_rotation_prob",
        "hidden_scale": "shared_scale",
        "hidden_shift_ndc": "shared_shift_ndc",
    },
}


def new_key(typed: str) -> str | None:
    """What to write instead of a `key` or `key=value` that is known by another name; else None."""
    key, equals, value = typed.partition("=")
    if equals and typed in KEYS:
        return KEYS[typed]
    found = _replaced(key, KEYS)
    return None if found is None else f"{found}{equals}{value}"


def update_targets(config: Any) -> None:
    """Give a config from a checkpoint today's targets and arguments, in place.

    Args:
        config: nested plain containers; one that refers to itself is walked once.
    """
    waiting, seen = [config], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, (dict, list, tuple)) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict) and isinstance(target := node.get("_target_"), str):
            node["_target_"] = target = _replaced(target, TARGETS) or target
            names = ARGUMENTS.get(target, {})
            items = [(names.get(key, key), value) for key, value in node.items()]
            node.clear()
            node.update({key: value for key, value in items if key is not None})
        waiting += node.values() if isinstance(node, dict) else node


def _replaced(name: str, table: Mapping[str, str]) -> str | None:
    """A dotted name with its longest known beginning replaced; None where none is known."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        if (new := table.get(".".join(parts[:cut]))) is not None:
            return ".".join([new, *parts[cut:]])
    return None
