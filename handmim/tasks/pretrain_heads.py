"""Heads of pretraining: built with the sizes they ask for, checked against what the losses need."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from handmim.models.heads.pixel import PixelDecoder, tap_blocks
from handmim.models.vit import ViT
from handmim.tasks.pretrain_outputs import MAKERS

# Heads the teacher owns a copy of, and heads that read pseudo-keypoints instead of tokens.
FOLLOWED = ("projection", "class_projection", "keypoint", "keypoint_prototypes")
READ_POINTS = ("keypoint_prototypes", "keypoint_predictor", "point_thumbnail", "point_hog")
HEADS = {head for _, heads in MAKERS.values() for head in heads} | {
    "class_projection",
    "keypoint_predictor",
}
# Fields that read the token of every patch ("patches" reads those of hidden ones).
WHOLE = ("dense", "patch_hog")


def build_heads(
    backbone: ViT,
    heads: Mapping[str, Callable[..., nn.Module]],
    fields: Collection[str],
    *,
    class_head: str,
) -> dict[str, nn.Module]:
    """Heads by name, each called with those sizes that its constructor takes.

    Args:
        backbone: whose tokens they read.
        heads: constructors by name.
        fields: of `PretrainOutputs` that are wanted.
        class_head: "own" builds a second projection head for class tokens.
    Raises: ValueError for an unknown head, or one that reads points where there are none.
    """
    unknown = sorted(set(heads) - HEADS)
    if unknown:
        raise ValueError(f"unknown heads {unknown}, valid are {sorted(HEADS)} (task.heads)")
    made: dict[str, nn.Module] = {}
    for name in sorted(heads, key=lambda n: n in READ_POINTS):  # points come before their readers
        sizes: dict[str, Any] = {
            "dim": backbone.embed_dim,
            "patch_px": backbone.patch_px,
            "grid_hw": backbone.grid_hw,
        }
        if name in READ_POINTS:
            if "keypoint" not in made:
                raise ValueError(f"the head {name!r} reads points: it needs the head 'keypoint'")
            points: Any = made["keypoint"]
            sizes = {"num_keypoints": points.num_keypoints, "num_dims": points.num_dims}
            sizes["dim"] = points.num_keypoints * points.num_dims
        taken = inspect.signature(heads[name]).parameters
        made[name] = heads[name](**{k: v for k, v in sizes.items() if k in taken})
    if class_head == "own" and "classes" in fields and "projection" in heads:
        made["class_projection"] = heads["projection"](dim=backbone.embed_dim)
    return {name: made[name] for name in (*heads, "class_projection") if name in made}


def check_heads(heads: Mapping[str, nn.Module], fields: Collection[str], *, mask_mode: str) -> None:
    """Refuse losses whose heads or tokens are missing.

    Args:
        heads: as built; one that looks at every patch says so by `reads_patches`.
        fields: of `PretrainOutputs` that are wanted.
        mask_mode: of `HandMimTask`.
    Raises: ValueError naming the field and what it lacks.
    """
    for field in fields:
        for head in MAKERS[field][1]:
            if head not in heads:
                raise ValueError(
                    f"a loss needs {field}, for which the head {head!r} is missing (task.heads)"
                )
    whole = sorted(read_whole(heads, fields) + [f for f in fields if f == "patches"])
    if mask_mode == "drop" and whole:
        raise ValueError(
            "task.mask_mode=drop leaves no tokens at hidden patches, but a loss needs "
            f"{', '.join(whole)}"
        )


def freeze_unread(
    backbone: ViT, heads: Mapping[str, nn.Module], fields: Collection[str], *, mask_mode: str
) -> None:
    """Freeze parameters that no output can reach, for which distributed training would wait.

    Those are heads that no field calls, blocks above all that pixels are read from, the mask token
    of a backbone that drops masked patches, and that of a decoder with a token for every patch.

    Args:
        backbone, heads: parts of the student, frozen in place.
        fields: of `PretrainOutputs` that are wanted.
        mask_mode: of `HandMimTask`.
    """
    called = {head for field in fields for head in MAKERS[field][1]} | {"class_projection"}
    if "keypoint" in called:
        called.add("keypoint_predictor")
    if "class_projection" in heads and "patches" not in fields:
        called.discard("projection")
    for name in heads.keys() - called:
        heads[name].requires_grad_(False)
    if set(fields) == {"pixels"}:
        pixel: Any = heads["pixel"]
        top = max(tap_blocks(pixel.tap_layers, backbone.depth))
        backbone.net.blocks[top:].requires_grad_(False)
    if mask_mode == "drop":
        backbone.mask_token.requires_grad_(False)
    elif isinstance(decoder := heads.get("pixel"), PixelDecoder):
        decoder.mask_token.requires_grad_(False)


def read_whole(heads: Mapping[str, nn.Module], fields: Collection[str]) -> list[str]:
    """Fields, without "pixels", that read the tokens of patches whether hidden or not, by
    themselves or by their heads."""
    return [
        field
        for field in fields
        if field in WHOLE
        or any(getattr(heads[head], "reads_patches", False) for head in MAKERS[field][1])
    ]
