"""Names that changed: what an older command line or an older checkpoint still uses."""

import re
from collections.abc import Mapping
from typing import Any

# The file of each objective of pretraining, which had a file of its own, `losses.NAME` before.
FILES = {
    **dict.fromkeys(("patch_distill", "class_distill", "koleo"), "distillation"),
    **dict.fromkeys(("keypoint_align", "keypoint_agree", "view_affine", "peclr"), "keypoint_align"),
    **dict.fromkeys(("class_hog", "point_hog", "patch_hog"), "hog"),
    **dict.fromkeys(("view_flow", "class_recon", "point_recon"), "experimental"),
    **dict.fromkeys(("dense_match", "latent_equivariance"), "experimental"),
    "pixel_recon": "pixel_recon",
}
CLASSES = {name: name.title().replace("_", "") for name in FILES} | {"peclr": "PeCLR"}
# Losses of fine-tuning: modules and classes of before in handmim.losses, classes of today.
HAND_LOSSES = {
    "joints.Joints3D": "JointLoss", "direct_keypoints.SmoothJoints3D": "JointLoss",
    "joints.Joints2D": "JointLoss2D", "direct_keypoints.SmoothJoints2D": "JointLoss2D",
    "joints.Joints3DAbs": "CameraJointLoss", "verts.Verts": "VertexLoss",
    "edges.Edges": "EdgeLoss", "mano_params.Rotations": "RotationLoss",
    "mano_params.Betas": "ShapeLoss", "prior.Prior": "PriorLoss",
    "heatmaps.Heatmaps": "HeatmapLoss", "silhouette.Silhouette": "SilhouetteLoss",
}  # fmt: skip
SCALE = {
    "min_sigma_ndc": "min_scale_ndc",
    "detach_sigma": "detach_scale",
    "sigma_momentum": "scale_momentum",
}
VIEWS = {
    f"hidden_{name}": f"shared_{name}"
    for name in ("rotation_deg", "full_rotation_prob", "scale", "shift_ndc")
}
# The head that an objective took: its name of before, its module, the settings that were kept.
HEADS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pixel_recon": ("pixel", ".to_pixels", ("tap_layers", "depth", "width", "num_heads")),
    "view_affine": ("affine", "", ("hidden_dim",)),
    "view_flow": ("displacement", "", ("warp_grid",)),
    "class_recon": ("thumbnail", "", ("thumb_px",)),
    "point_recon": ("point_thumbnail", "", ("thumb_px",)),
    "class_hog": ("class_hog", "", ("cells", "hidden_dim")),
    "point_hog": ("point_hog", "", ("cells", "hidden_dim")),
    "patch_hog": ("patch_hog", "", ("per_patch",)),
    "dense_match": ("dense", "", ("out_dim",)),
    "keypoint_agree": ("class_keypoint", ".head", ("hidden_dim", "num_hidden")),
}
NOTHING = "nothing instead: it is the default"
# Config keys (with everything below them) and options: a typed one is answered with the new one.
KEYS: dict[str, str] = {
    **dict.fromkeys(("probe=none", "probe=null"), "probe.hook=null"),
    "tta=none": "tta=null",
    "tta=rotations_scales": "tta=rotations 'tta_views.rotations.scales=[0.9,1.0,1.1]'",
    "collapse=none": "collapse=null",
    "experiment=cpu_keypoints_finetune": (
        "experiment=cpu_finetune data=keypoints 'loss=[joints3d,joints2d,prior]'"
    ),
    **dict.fromkeys(
        ("collapse=default", "views=default", "task=pretrain", "optim=adamw_pretrain",
         "optim=adamw_finetune", "trainer=pretrain", "trainer=finetune"), NOTHING,
    ),
    **{
        f"experiment={old}_{size}": f"experiment={new} size={size}"
        for old, new in (("freihand", "freihand"), ("ho3dv2", "ho3d_v2"), ("ho3dv3", "ho3d"))
        for size in ("cpu", "vits", "vitb")
    },
    "experiment=ho3d_v2": "experiment=ho3d data=ho3d_v2 trainer.max_steps=40000",
    "experiment=ho3d_v3": "experiment=ho3d",
    "backbone=vit_large_p16": "task.backbone.arch=vit_large_patch16_224",
    "size=vitb": "size=vits backbone=vit_base_p16 task.backbone.drop_path_rate=0.2",
    "head=decoder_small":
        "head=decoder task.head.width=128 task.head.num_heads=4 task.head.dropout=0.0",
    "head=iterative_small": "head=iterative task.head.hidden_dim=728 task.head.dropout=0.0",
    "head=plain_small": "head=plain task.head.hidden_dim=768 task.head.dropout=0.0",
    "scene=palms": "scene=studio scene.sides=[palmar] scene.cone_deg=[35,30,30]",
    "augment=default": "augment.cut_out=null augment.occluder=null",
    "augment=occluded":
        "'augment.cut_out={_target_: handmim.data.augment.HandCutOut}' "
        "'augment.occluder={_target_: handmim.data.augment.OccluderPaste}'",
    "views=curriculum":
        "'views.masks.ratio=[0.1,{_target_: handmim.engine.optim.Schedule, start: 0.3, end: 0.6, "
        "shape: linear}]'",
    "views=asymmetric":
        "views.colour.blur_prob=0.5 views.colour.solarise_prob=0.0 "
        "'views.colour_later={blur_prob: 0.1, solarise_prob: 0.2}'",
    "method=supervised-init": "train=false",
    **{f"views.{old}": f"views.{new}" for old, new in VIEWS.items()},
    "task.centering.momentum": "centerings.ema.momentum",
    "task.centering.over": "centerings.ema.over",
    "task.centering.num_iters": "centerings.sinkhorn.num_iters",
    "num_pictures": "num_images",
    "forge_mano": "fake_mano",
    "predictor=truth": "predictor=ground_truth",
    **{f"suites.{s}.asked": f"suites.{s}.promised" for s in ("step", "step_gpu", "hand", "score")},
    "suites.score.turn_rad": "suites.score.rotation_rad",
    "suites.loader.eaten_per_s": "suites.loader.consumed_per_s",
    "suites.render.pictures": "suites.render.images",
    "tta.views": "tta_views.rotations",
    "trainer.picture_every": "trainer.image_every",
    "rows": "variants",
    "cell": "run",
    "setting": "dataset",
    "setting=renders_large": "dataset=renders",
    **{
        f"budget.{key}": f"budgets.NAME.{key}"
        for key in ("pretrain", "finetune", "fractions", "long_steps", "slow", "fast")
    },
    "table=without": "table=objectives",
    "table=pixels": "table=masking",
    "table=views": "table=masking",
    "alarms=none": "collapse=null",
    "alarms": "collapse",
    "alarms.deadly": "collapse.stop_on",
    "alarms.hook": "collapse",
    "alarms.stop_after": "collapse.patience",
    "alarms.thresholds": "+collapse.thresholds",
    **{
        f"{scene}.{key}=": answer  # with any value
        for scene in ("scene", "data.scene")
        for key, answer in (
            ("fill", f"{scene}.crop_scale=1.45, the side of the image relative to the joints' box"),
            ("offset", "nothing instead: the joints' box is centred"),
        )
    },
    # Objectives of pretraining; longer keys first where one begins another.
    **{
        f"task.losses.keypoint_align.term.{old}": f"task.objectives.keypoint_align.{new}"
        for old, new in SCALE.items()
    },
    **{
        f"task.losses.{name}{term}": f"task.objectives.{name}"
        for name in FILES
        for term in ("", ".term")
    },
    "task.keypoint_target": "task.objectives.keypoint_align.target",
    "task.class_head": "task.objectives.class_distill.head",
    "task.class_teacher_temp": "task.objectives.class_distill.teacher_temp",
    "task.redraw_from": "task.objectives.point_hog.points_from",
    "task.pixel": "task.objectives.pixel_recon",
    **{f"task.heads.{old}": f"task.objectives.{name}" for name, (old, *_) in HEADS.items()},
    "task.heads.thumbnail.thumb_px": "task.objectives.class_recon.side_px",
    "task.heads.point_thumbnail.thumb_px": "task.objectives.point_recon.side_px",
    "task.heads.keypoint_prototypes": "task.objectives.keypoint_align.prototypes",
    "pixel_head": "task.objectives.pixel_recon.head",
    "point_hog_head": "task.objectives.point_hog.head",
    "keypoint_disc": "task.objectives.keypoint_align.disc",
    "keypoint_predictor=mlp": "task.objectives.keypoint_align.predictor=true",
    "keypoint_predictor=none": "task.objectives.keypoint_align.predictor=false",
}  # fmt: skip
OF_TERM = re.compile(r"^(task\.losses\.\w+)\.term\b")  # settings of losses of fine-tuning
# Modules (with everything in them), classes and functions that checkpoints name as `_target_`.
TARGETS: dict[str, str] = {
    "handmim.engine.optim.OptimRecipe": "handmim.engine.optim.OptimizerConfig",
    "handmim.engine.schedule": "handmim.engine.optim",
    "handmim.tasks.finetune": "handmim.tasks.mesh",
    **{
        f"handmim.models.heads.{old}": "handmim.models.heads.hand_head"
        for old in ("plain", "iterative", "decoder")
    },
    "handmim.tasks.keypoint_regression": "handmim.tasks.regression",
    "handmim.tasks.keypoints": "handmim.tasks.regression",
    "handmim.metrics.probe": "handmim.diagnostics.probe",
    "handmim.metrics.retrieval": "handmim.diagnostics.probe",
    "handmim.tasks.alarms.CollapseAlarms": "handmim.diagnostics.collapse.CollapseDetection",
    "handmim.tasks.probing": "handmim.diagnostics.probe",
    "handmim.data.mixed": "handmim.data.datasets",
    "handmim.evaluation.tta": "handmim.evaluation.inference",
    "handmim.losses.total.Weighted": "handmim.losses.composite.LossTerm",
    **dict.fromkeys(
        [f"handmim.losses.{old}" for old in ("joints", "mesh", "parameters", "maps")],
        "handmim.losses.hand",
    ),
    **{f"handmim.losses.{old}": f"handmim.losses.hand.{new}" for old, new in HAND_LOSSES.items()},
    **{
        f"handmim.losses.{name}.Term": f"handmim.objectives.{file}.{CLASSES[name]}"
        for name, file in FILES.items()
    },
    **{
        f"handmim.objectives.{folder}{name}": f"handmim.objectives.{file}"
        for name, file in FILES.items()
        for folder in ("", "experimental.")
        if name != file
    },
    "handmim.objectives.prototypes": "handmim.objectives.distillation",
    "handmim.objectives.experimental.low_res_recon": "handmim.objectives.experimental",
    "handmim.models.heads.projection": "handmim.objectives.distillation",
    "handmim.objectives.peclr.LatentPoints": "handmim.objectives.keypoints.LatentPoints",
    "handmim.models.heads.keypoint": "handmim.objectives.keypoints",
    "handmim.data.webdataset": "handmim.data.packed",
    "handmim.models.centering": "handmim.models.teacher",
    "handmim.data.occlusion": "handmim.data.augment",
    "handmim.data.masking": "handmim.data.views",
    "handmim.data.colour": "handmim.data.pixels",
}
# Arguments by the new target: the new name, or None where the argument is gone.
ARGUMENTS: dict[str, dict[str, str | None]] = {"handmim.data.views.ViewMaker": {**VIEWS}}
# Checkpoints from before objectives held their own heads: a loss was `{_target_: Weighted, weight,
# term: {...}}`, heads lay in `task.heads`, some settings of single losses in `task`.
WEIGHTED = "handmim.losses.total.Weighted"
PRETRAINING = "handmim.tasks.pretrain.HandMimTask"
HOG = "handmim.losses.hog.Term"
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
# Entries of state dicts by how they begin. The shared heads stayed where they were.
PREFIXES = {
    f"student.{old}.": f"objectives.{name}{module}." for name, (old, module, _) in HEADS.items()
} | {
    "student.class_projection.": "objectives.class_distill.class_projection.",
    "student.keypoint_predictor.mlp.": "objectives.keypoint_align.delta.",
    "objectives.keypoint_align.predictor.mlp.": "objectives.keypoint_align.delta.",
    "objectives.pixel_recon.head.": "objectives.pixel_recon.to_pixels.",
    **{
        f"objectives.{name}.head.": f"objectives.{name}."
        for name in ("view_affine", "class_hog", "point_hog", "patch_hog")
    },
    "student.keypoint_prototypes.": "objectives.keypoint_align.keypoint_prototypes.",
    "centering.patches.": "objectives.patch_distill.centering.",
    "centering.classes.": "objectives.class_distill.centering.",
    "centering.keypoint_classes.": "objectives.keypoint_align.centering.",
    "losses.terms.keypoint_align.sigma.": "objectives.keypoint_align.running_scale.",
}


def new_key(typed: str) -> str | None:
    """What to write instead of a `key` or `key=value` that is known by another name; else None."""
    key, equals, value = typed.partition("=")
    for known in (typed, f"{key}="):
        if equals and known in KEYS:
            return KEYS[known]
    if key == "loss" and set(value.strip("[]").split(",")) & FILES.keys():
        return f"objective={value} (of pretraining)"
    found = _replaced(key, KEYS) or OF_TERM.sub(r"\1", key)
    return None if found == key else f"{found}{equals}{value}"


def update_targets(config: Any) -> None:
    """Give a config from a checkpoint, nested plain containers, today's targets and arguments, in
    place; one that refers to itself is walked once."""
    update_losses(config)
    if isinstance(config, dict) and isinstance(views := config.get("views"), dict):
        colour, later = views.get("colour"), views.get("colour_later")
        # It was a whole ColourJitter.
        if isinstance(colour, dict) and isinstance(later, dict) and later.pop("_target_", None):
            views["colour_later"] = {k: v for k, v in later.items() if v != colour.get(k)}
    waiting, seen = [config], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, (dict, list, tuple)) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict) and isinstance(scene := node.get("scene"), dict):
            for gone in ("fill", "offset"):  # renders are framed by the crop rule now
                scene.pop(gone, None)
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


def update_losses(config: Any) -> None:
    """Give the task of a checkpoint's config today's losses or objectives, in place."""
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(task, dict) or not isinstance(losses := task.get("losses"), dict):
        return
    for name, node in losses.items():
        if isinstance(node, dict) and node.get("_target_") == WEIGHTED:
            term = node.get("term")
            losses[name] = dict(term) if isinstance(term, dict) else {}
            losses[name]["weight"] = node.get("weight")
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
    old, _, names = HEADS.get(name, ("", "", ()))
    head = heads.pop(old, None)
    if not isinstance(head, dict):
        return {}
    kept = {*names, *CONSTANT, *CONSTANT_OF.get(name, {})}
    found = {"side_px" if k == "thumb_px" else k: v for k, v in head.items() if k in kept}
    kind = str(head.get("_target_")).rsplit(".", 1)[-1]
    if name == "pixel_recon":
        found["head"] = "decoder" if kind == "PixelDecoder" else "linear"
    if name == "point_hog":
        found["head"] = "gaussians" if kind == "PointHogHead" else "mlp"
    return found


def new_entry(name: str) -> str:
    """Today's name of an entry of a state dict."""
    old = next((old for old in PREFIXES if name.startswith(old)), "")
    return PREFIXES.get(old, "") + name.removeprefix(old)


def rename_old_entries(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook that renames old entries in place; heads that no objective reads are left out."""
    own = module.state_dict().keys()
    for name in list(state):
        renamed = prefix + new_entry(name.removeprefix(prefix))
        if renamed != name:
            value = state.pop(name)
            if renamed.removeprefix(prefix) in own:
                state[renamed] = value
