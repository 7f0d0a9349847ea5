"""Losses in configs of checkpoints from before objectives held their own heads.

Then a loss was `{_target_: Weighted, weight, term: {...}}`, heads of pretraining lay in
`task.heads`, and some settings of single losses in `task`.
"""

from typing import Any

WEIGHTED = "handmim.losses.total.Weighted"
PRETRAINING = "handmim.tasks.pretrain.HandMimTask"
HOG = "handmim.losses.hog.Term"
# The head that an objective took, and its settings under today's names.
HEADS: dict[str, tuple[str, dict[str, str]]] = {
    "pixel_recon": (
        "pixel",
        {
            "tap_layers": "tap_layers",
            "depth": "depth",
            "width": "width",
            "num_heads": "num_heads",
        },
    ),
    "view_affine": ("affine", {"hidden_dim": "hidden_dim"}),
    "view_flow": ("displacement", {"warp_grid": "warp_grid"}),
    "class_recon": ("thumbnail", {"thumb_px": "side_px"}),
    "point_recon": ("point_thumbnail", {"thumb_px": "side_px"}),
    "class_hog": ("class_hog", {"cells": "cells", "hidden_dim": "hidden_dim"}),
    "point_hog": ("point_hog", {"cells": "cells", "hidden_dim": "hidden_dim"}),
    "patch_hog": ("patch_hog", {"per_patch": "per_patch"}),
    "dense_match": ("dense", {"out_dim": "out_dim"}),
    "keypoint_agree": ("class_keypoint", {"hidden_dim": "hidden_dim", "num_hidden": "num_hidden"}),
}
# Settings of terms and heads that are constants now, and their values.
CONSTANT: dict[str, Any] = {
    "min_std_ndc": 0.25, "min_articulation_std": 0.15, "covariance_weight": 0.01, "source": None,
    "bins": 9, "fine": 2, "sigma_cells": 0.75, "mlp_ratio": 4.0, "num_layers": None,
}  # fmt: skip
CONSTANT_OF: dict[str, dict[str, Any]] = {
    "keypoint_agree": {
        "min_sigma_ndc": 0.05, "bound_ndc": 1.5, "init_spread": 0.6,
        "num_keypoints": None, "num_dims": None,
    },
    "class_recon": {"beta": 0.3, "edge_beta": 0.1, "hidden_dim": 256, "num_hidden": 1},
    "point_recon": {"beta": 0.3, "edge_beta": 0.1, "hidden_dim": 256, "num_hidden": 1},
    "class_hog": {"beta": 1.0, "num_hidden": 1},
    "point_hog": {"beta": 1.0, "num_hidden": 1, "where": "all"},
    "patch_hog": {"beta": 1.0},
    "view_affine": {"num_hidden": 1},
    "view_flow": {"hidden_dim": 256, "num_hidden": 1},
}  # fmt: skip
SCALE = {
    "min_sigma_ndc": "min_scale_ndc",
    "detach_sigma": "detach_scale",
    "sigma_momentum": "scale_momentum",
}
# Head of the student: where its entries are now. The shared heads stayed where they were.
HEAD_ENTRIES = {
    "class_projection": "class_distill.class_projection",
    "pixel": "pixel_recon.head",
    "affine": "view_affine.head",
    "displacement": "view_flow",
    "thumbnail": "class_recon",
    "point_thumbnail": "point_recon",
    "class_hog": "class_hog.head",
    "point_hog": "point_hog.head",
    "patch_hog": "patch_hog.head",
    "dense": "dense_match",
    "class_keypoint": "keypoint_agree.head",
    "keypoint_predictor": "keypoint_align.predictor",
    "keypoint_prototypes": "keypoint_align.keypoint_prototypes",
}
PREFIXES = {f"student.{old}.": f"objectives.{new}." for old, new in HEAD_ENTRIES.items()} | {
    "centering.patches.": "objectives.patch_distill.centering.",
    "centering.classes.": "objectives.class_distill.centering.",
    "centering.keypoint_classes.": "objectives.keypoint_align.centering.",
    "losses.terms.keypoint_align.sigma.": "objectives.keypoint_align.running_scale.",
}


def update_losses(config: Any) -> None:
    """Give the task of a checkpoint's config today's losses or objectives, in place."""
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(task, dict) or not isinstance(losses := task.get("losses"), dict):
        return
    for name, node in losses.items():
        if isinstance(node, dict) and node.get("_target_") == WEIGHTED:
            term = node.get("term")
            losses[name] = {
                **(term if isinstance(term, dict) else {}),
                "weight": node.get("weight"),
            }
    if task.get("_target_") == PRETRAINING and isinstance(task.get("heads"), dict):
        _to_objectives(task)


def _to_objectives(task: dict[str, Any]) -> None:
    heads, pixel = task["heads"], task.pop("pixel", None)
    task["objectives"] = objectives = task.pop("losses")
    temp = task.pop("class_teacher_temp", None)
    moved = {
        "keypoint_align": {"target": task.pop("keypoint_target", "ema"), "teacher_temp": temp},
        "class_distill": {"head": task.pop("class_head", "shared"), "teacher_temp": temp},
        "pixel_recon": pixel if isinstance(pixel, dict) else {},
    }
    points_from = task.pop("redraw_from", "own")
    moved |= {name: {"points_from": points_from} for name in ("point_hog", "point_recon")}
    for name, node in objectives.items():
        if not isinstance(node, dict):
            continue
        if name == "keypoint_align":
            node |= {SCALE[key]: node.pop(key) for key in SCALE.keys() & node.keys()}
            node["predictor"] = heads.pop("keypoint_predictor", None) is not None
            prototypes = heads.pop("keypoint_prototypes", None)
            if isinstance(prototypes, dict):
                taken = ("num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers")
                node["prototypes"] = {k: v for k, v in prototypes.items() if k in taken}
        node |= moved.get(name, {}) | _of_head(name, heads)
        if node.get("_target_") == HOG:
            node["_target_"] = f"handmim.losses.{name}.Term"
        constants = CONSTANT | CONSTANT_OF.get(name, {})
        for key in constants.keys() & node.keys():
            if constants[key] in (None, node[key]):
                del node[key]


def _of_head(name: str, heads: dict[str, Any]) -> dict[str, Any]:
    """The settings of an objective's own head, which is taken out of the heads."""
    old, names = HEADS.get(name, ("", {}))
    head = heads.pop(old, None)
    if not isinstance(head, dict):
        return {}
    constants = CONSTANT | CONSTANT_OF.get(name, {})
    found: dict[str, Any] = {}
    for key, value in head.items():
        if key in names or key in constants:
            found[names.get(key) or str(key)] = value
    kind = str(head.get("_target_")).rsplit(".", 1)[-1]
    if name == "pixel_recon":
        found["head"] = "decoder" if kind == "PixelDecoder" else "linear"
    if name == "point_hog":
        found["head"] = "gaussians" if kind == "PointHogHead" else "mlp"
    return found


def new_entry(name: str) -> str:
    """Today's name of an entry of a state dict."""
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name
