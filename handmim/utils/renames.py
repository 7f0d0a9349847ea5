"""Names that changed: what an older command line or an older checkpoint still uses."""

from collections.abc import Mapping
from typing import Any

from handmim.utils.older_losses import SCALE, update_losses

EXPERIMENTAL = "handmim.objectives.experimental"
OBJECTIVES = (
    "patch_distill", "class_distill", "koleo", "keypoint_align", "keypoint_agree", "peclr",
    "pixel_recon", "view_affine", "view_flow", "class_recon", "point_recon", "class_hog",
    "point_hog", "patch_hog", "dense_match", "latent_equivariance",
)  # fmt: skip
HAND_LOSSES = (
    "joints3d", "joints3d_abs", "joints2d", "direct3d", "direct2d", "verts", "edges", "rotations",
    "betas", "prior", "heatmaps", "silhouette",
)  # fmt: skip
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
    "num_pictures": "num_images",
    "forge_mano": "fake_mano",
    **{f"suites.{s}.asked": f"suites.{s}.promised" for s in ("step", "step_gpu", "hand", "score")},
    "suites.score.turn_rad": "suites.score.rotation_rad",
    "suites.loader.eaten_per_s": "suites.loader.consumed_per_s",
    "suites.render.pictures": "suites.render.images",
    "predictor=truth": "predictor=ground_truth",
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
    # Objectives of pretraining; longer keys first where one begins another.
    **{
        f"task.losses.keypoint_align.term.{old}": f"task.objectives.keypoint_align.{new}"
        for old, new in SCALE.items()
    },
    **{
        f"task.losses.{name}{term}": f"task.objectives.{name}"
        for name in OBJECTIVES
        for term in ("", ".term")
    },
    **{f"task.losses.{name}.term": f"task.losses.{name}" for name in HAND_LOSSES},
    "task.keypoint_target": "task.objectives.keypoint_align.target",
    "task.class_head": "task.objectives.class_distill.head",
    "task.class_teacher_temp": "task.objectives.class_distill.teacher_temp",
    "task.redraw_from": "task.objectives.point_hog.points_from",
    "task.pixel": "task.objectives.pixel_recon",
    "task.heads.pixel": "task.objectives.pixel_recon",
    "task.heads.class_keypoint": "task.objectives.keypoint_agree",
    "task.heads.keypoint_prototypes": "task.objectives.keypoint_align.prototypes",
    "task.heads.affine": "task.objectives.view_affine",
    "task.heads.displacement": "task.objectives.view_flow",
    "task.heads.thumbnail.thumb_px": "task.objectives.class_recon.side_px",
    "task.heads.point_thumbnail.thumb_px": "task.objectives.point_recon.side_px",
    "task.heads.class_hog": "task.objectives.class_hog",
    "task.heads.point_hog": "task.objectives.point_hog",
    "task.heads.patch_hog": "task.objectives.patch_hog",
    "task.heads.dense": "task.objectives.dense_match",
    "pixel_head": "task.objectives.pixel_recon.head",
    "point_hog_head": "task.objectives.point_hog.head",
    "keypoint_disc": "task.objectives.keypoint_align.disc",
    "keypoint_predictor=mlp": "task.objectives.keypoint_align.predictor=true",
    "keypoint_predictor=none": "task.objectives.keypoint_align.predictor=false",
}
# Modules (with everything in them), classes and functions that checkpoints name as `_target_`.
TARGETS: dict[str, str] = {
    "handmim.engine.optim.OptimRecipe": "handmim.engine.optim.OptimizerConfig",
    "handmim.tasks.finetune": "handmim.tasks.mesh",
    "handmim.models.heads.plain": "handmim.models.heads.iterative",
    "handmim.tasks.keypoint_regression": "handmim.tasks.keypoints",
    "handmim.metrics.probe": "handmim.diagnostics.readout",
    "handmim.metrics.retrieval": "handmim.diagnostics.readout",
    "handmim.tasks.alarms.CollapseAlarms": "handmim.diagnostics.collapse.CollapseDetection",
    "handmim.tasks.probing": "handmim.diagnostics.probe",
    "handmim.data.mixed": "handmim.data.datasets",
    "handmim.losses.total.Weighted": "handmim.losses.composite.LossTerm",
    "handmim.losses.joints.Joints3D": "handmim.losses.joints.JointLoss",
    "handmim.losses.joints.Joints3DAbs": "handmim.losses.joints.CameraJointLoss",
    "handmim.losses.joints.Joints2D": "handmim.losses.joints.JointLoss2D",
    "handmim.losses.direct_keypoints.SmoothJoints3D": "handmim.losses.joints.JointLoss",
    "handmim.losses.direct_keypoints.SmoothJoints2D": "handmim.losses.joints.JointLoss2D",
    "handmim.losses.verts.Verts": "handmim.losses.mesh.VertexLoss",
    "handmim.losses.edges.Edges": "handmim.losses.mesh.EdgeLoss",
    "handmim.losses.mano_params.Rotations": "handmim.losses.parameters.RotationLoss",
    "handmim.losses.mano_params.Betas": "handmim.losses.parameters.ShapeLoss",
    "handmim.losses.prior.Prior": "handmim.losses.parameters.PriorLoss",
    "handmim.losses.heatmaps.Heatmaps": "handmim.losses.maps.HeatmapLoss",
    "handmim.losses.silhouette.Silhouette": "handmim.losses.maps.SilhouetteLoss",
    "handmim.losses.patch_distill.Term": "handmim.objectives.patch_distill.PatchDistill",
    "handmim.losses.class_distill.Term": "handmim.objectives.class_distill.ClassDistill",
    "handmim.losses.koleo.Term": "handmim.objectives.koleo.Koleo",
    "handmim.losses.keypoint_align.Term": "handmim.objectives.keypoint_align.KeypointAlign",
    "handmim.losses.keypoint_agree.Term": "handmim.objectives.keypoint_agree.KeypointAgree",
    "handmim.losses.peclr.Term": "handmim.objectives.peclr.PeCLR",
    "handmim.losses.pixel_recon.Term": "handmim.objectives.pixel_recon.PixelRecon",
    "handmim.losses.view_affine.Term": "handmim.objectives.view_affine.ViewAffine",
    "handmim.losses.class_hog.Term": "handmim.objectives.hog.ClassHog",
    "handmim.losses.point_hog.Term": "handmim.objectives.hog.PointHog",
    "handmim.losses.patch_hog.Term": "handmim.objectives.hog.PatchHog",
    "handmim.losses.view_flow.Term": f"{EXPERIMENTAL}.view_flow.ViewFlow",
    "handmim.losses.class_recon.Term": f"{EXPERIMENTAL}.low_res_recon.ClassRecon",
    "handmim.losses.point_recon.Term": f"{EXPERIMENTAL}.low_res_recon.PointRecon",
    "handmim.losses.dense_match.Term": f"{EXPERIMENTAL}.dense_match.DenseMatch",
    "handmim.losses.latent_equivariance.Term": (
        f"{EXPERIMENTAL}.latent_equivariance.LatentEquivariance"
    ),
    "handmim.models.heads.projection": "handmim.objectives.prototypes",
    "handmim.models.heads.keypoint.LatentPoints": "handmim.objectives.peclr.LatentPoints",
    "handmim.models.heads.keypoint": "handmim.objectives.keypoints",
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
    if key == "loss" and set(value.strip("[]").split(",")) & set(OBJECTIVES):
        return f"objective={value} (of pretraining)"
    found = _replaced(key, KEYS)
    return None if found is None else f"{found}{equals}{value}"


def update_targets(config: Any) -> None:
    """Give a config from a checkpoint today's targets and arguments, in place.

    Args:
        config: nested plain containers; one that refers to itself is walked once.
    """
    update_losses(config)
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
