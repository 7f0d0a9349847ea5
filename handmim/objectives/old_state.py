"""Entries of pretraining checkpoints from before objectives held their own heads."""

from typing import Any

from torch import Tensor, nn

# Head of the student: where its entries are now. The shared heads stayed where they were.
HEADS = {
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
PREFIXES = {f"student.{old}.": f"objectives.{new}." for old, new in HEADS.items()} | {
    "centering.patches.": "objectives.patch_distill.centering.",
    "centering.classes.": "objectives.class_distill.centering.",
    "centering.keypoint_classes.": "objectives.keypoint_align.centering.",
    "losses.terms.keypoint_align.sigma.": "objectives.keypoint_align.running_scale.",
}


def new_name(name: str) -> str:
    """Today's name of an entry."""
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def rename_old_entries(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A hook that renames old entries in place; heads that no objective reads are left out."""
    own = module.state_dict().keys()
    for name in list(state):
        renamed = prefix + new_name(name.removeprefix(prefix))
        if renamed != name:
            value = state.pop(name)
            if renamed.removeprefix(prefix) in own:
                state[renamed] = value
