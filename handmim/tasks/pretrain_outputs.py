"""From tokens to what the losses look at: one function per field of `PretrainOutputs`.

A loss term names the fields it `needs`; only those are made. Each function says by `HEADS` which of
the task's heads it uses.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from handmim.geometry.warp import from_source, to_source
from handmim.losses.hog import oriented_gradients
from handmim.losses.keypoints.contrast import aligned_shapes
from handmim.models.heads.pixel import patchify
from handmim.tasks.distillation import Pair, class_targets, patch_targets, project
from handmim.types import (
    ClassTargets,
    PatchTargets,
    PixelTargets,
    PretrainBatch,
    StepInfo,
    Tokens,
)

if TYPE_CHECKING:
    from handmim.tasks.pretrain import HandMimTask


HOG_HEADS = ("class_hog", "point_hog", "patch_hog")


class Seen(NamedTuple):
    """One batch as both networks saw it."""

    batch: PretrainBatch
    info: StepInfo
    student: Tokens  # of all views, [B*G, ...]
    teacher: Tokens | None  # of all views, whole; None when no field needs it
    points: Tensor | None  # [B, G, K, d] the student's pseudo-keypoints
    projected: Mapping[str, Pair] = MappingProxyType({})  # tokens after prototype heads, by field

    @property
    def shape(self) -> tuple[int, int]:
        """(B, G)."""
        b, g = self.batch.views.shape[:2]
        return b, g

    @property
    def is_masked(self) -> Tensor:
        """[B*G, N]."""
        return self.batch.is_masked.flatten(0, 1)

    @property
    def cls(self) -> Tensor:
        """[B, G, D] class tokens of the student."""
        return self.student.cls.unflatten(0, self.shape)

    @property
    def all_cls(self) -> Tensor:
        """[B, G + L, D] the same, then those of its local crops."""
        local = self.student.local_cls
        if local is None:
            return self.cls
        return torch.cat([self.cls, local.unflatten(0, (self.shape[0], -1))], dim=1)

    @property
    def hidden_patches(self) -> Tensor:
        """[M, D] the student's tokens at hidden patches."""
        patches = self.student.patches
        return patches if patches.ndim == 2 else patches.flatten(0, 1)[self.batch.masked_idx]


def projected(task: "HandMimTask", seen: Seen) -> dict[str, Pair]:
    """Masked patches and class tokens after their prototype heads, by field.

    The teacher's patches are all of them where the centre follows all.
    """
    if seen.teacher is None:
        return {}
    kinds: dict[str, Pair] = {}
    if "patches" in task.fields:
        places = seen.batch.masked_idx
        everything = task.training and getattr(task.centering["patches"], "over", "") == "all"
        teacher = seen.teacher.patches
        if teacher.ndim == 3:  # of all patches
            teacher = teacher.flatten(0, 1) if everything else teacher.flatten(0, 1)[places]
        kinds["patches"] = Pair(seen.hidden_patches, teacher)
    if "classes" in task.fields:
        kinds["classes"] = Pair(seen.all_cls, seen.teacher.cls.unflatten(0, seen.shape))
    own = "class_projection" in task.student
    groups = [[name] for name in kinds] if own else [list(kinds)] if kinds else []
    done: dict[str, Pair] = {}
    for group in groups:
        head = head_of(task, group[0])
        pairs = project(
            task.student[head],
            task.teacher_head(head),
            [kinds[name] for name in group],
            freeze_prototypes=task.prototypes_frozen(seen.info),
        )
        done |= dict(zip(group, pairs, strict=True))
    return done


def head_of(task: "HandMimTask", field: str) -> str:
    """Name of the prototype head that a field's tokens go through."""
    own = field == "classes" and "class_projection" in task.student
    return "class_projection" if own else "projection"


def _patches(task: "HandMimTask", seen: Seen) -> PatchTargets:
    return patch_targets(
        seen.projected["patches"],
        task.teacher_head("projection"),
        task.centering["patches"],
        seen.is_masked,
        seen.batch.masked_idx,
        task.teacher_temp(*seen.info),
        update=task.training,
    )


def _classes(task: "HandMimTask", seen: Seen) -> ClassTargets:
    return class_targets(
        seen.projected["classes"],
        task.teacher_head(head_of(task, "classes")),
        task.centering["classes"],
        task.class_teacher_temp(*seen.info),
        update=task.training,
    )


def _pixels(task: "HandMimTask", seen: Seen) -> PixelTargets:
    head: Any = task.student["pixel"]
    batch, is_masked = seen.batch, seen.is_masked
    source = batch.views
    if task.pixel.clean_target:
        if batch.clean_views is None:
            raise ValueError(
                "task.pixel.clean_target=true needs the views before colour jitter "
                "(views.keep_clean=true)"
            )
        source = batch.clean_views
    is_wanted = is_masked
    if task.pixel.visible_share > 0 and task.training:
        chance = torch.rand(is_masked.shape, device=is_masked.device)
        is_wanted = is_masked | (chance < task.pixel.visible_share)
    tokens = seen.student.patches
    if seen.student.taps:
        tokens = torch.stack(seen.student.taps).mean(dim=0)
    where = batch.masked_idx
    if is_wanted is not is_masked:
        where = is_wanted.flatten().nonzero().squeeze(1)  # waits for the device
    pred = head(tokens, where, is_masked if task.mask_mode == "drop" else None)
    target = patchify(source.flatten(0, 1), task.patch_px).flatten(0, 1)[where]
    per_view = is_wanted.sum(dim=1, keepdim=True).clamp(min=1)
    weight = (1.0 / per_view.float()).expand_as(is_wanted).flatten()[where]
    return PixelTargets(pred, target, weight, len(is_wanted))


def _keypoints(task: "HandMimTask", seen: Seen) -> Tensor:
    assert seen.points is not None
    return seen.points


def _predicted_keypoints(task: "HandMimTask", seen: Seen) -> Tensor:
    points = _keypoints(task, seen)
    if "keypoint_predictor" in task.student:
        return task.student["keypoint_predictor"](points)
    return points


def _target_keypoints(task: "HandMimTask", seen: Seen) -> Tensor:
    assert seen.points is not None
    if task.keypoint_target == "student":
        return seen.points
    assert seen.teacher is not None
    with torch.no_grad():
        return task.teacher_head("keypoint")(seen.teacher).unflatten(0, seen.shape)


def _class_keypoints(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["class_keypoint"](seen.student).unflatten(0, seen.shape)


def _keypoint_classes(task: "HandMimTask", seen: Seen) -> ClassTargets:
    """Aligned shapes of the points as prototypes: another view's shape is the target."""
    points, target = _predicted_keypoints(task, seen), _target_keypoints(task, seen)
    term: Any = task.losses.terms["keypoint_align"]
    how = {"embed": term.embed, "invert_scale": term.invert_scale}
    (pair,) = project(
        task.student["keypoint_prototypes"],
        task.teacher_head("keypoint_prototypes"),
        [
            Pair(
                aligned_shapes(points, seen.batch, **how),
                aligned_shapes(target.detach(), seen.batch, **how),
            )
        ],
        freeze_prototypes=task.prototypes_frozen(seen.info),
    )
    return class_targets(
        pair,
        task.teacher_head("keypoint_prototypes"),
        task.centering["keypoint_classes"],
        task.class_teacher_temp(*seen.info),
        update=task.training,
    )


def _affine(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["affine"](seen.cls, seen.cls.roll(-1, dims=1))


def _displacement(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["displacement"](seen.cls)


def _thumbnail(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["thumbnail"](seen.cls)


def _redrawing_points(task: "HandMimTask", seen: Seen) -> Tensor:
    """[B, G, K*d] a view's own points, or those of the next view carried here."""
    points = seen.points
    assert points is not None
    if task.redraw_from == "other":
        maps = seen.batch.source_from_view, seen.batch.displacement_ndc
        points = from_source(to_source(points, *maps).roll(-1, dims=1), *maps)
    return points.flatten(2)


def _point_thumbnail(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["point_thumbnail"](_redrawing_points(task, seen))


def _class_hog(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["class_hog"](seen.cls)


def _point_hog(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["point_hog"](_redrawing_points(task, seen))


def _patch_hog(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["patch_hog"](seen.student.patches).unflatten(0, seen.shape)


def _hog_targets(task: "HandMimTask", seen: Seen) -> dict[tuple[int, int], Tensor]:
    """Computed once, however many heads tell them."""
    heads: list[Any] = [task.student[name] for name in HOG_HEADS if name in task.student]
    sizes = {(head.bins, head.cells) for head in heads}
    views = seen.batch.views.flatten(0, 1)
    with torch.no_grad():
        return {(bins, cells): oriented_gradients(views, cells, bins) for bins, cells in sizes}


def _dense(task: "HandMimTask", seen: Seen) -> Tensor:
    return task.student["dense"](seen.student.patches).unflatten(0, seen.shape)


# Field: the function that makes it and the heads it calls.
MAKERS: dict[str, tuple[Callable[["HandMimTask", Seen], Any], tuple[str, ...]]] = {
    "cls": (lambda task, seen: seen.cls, ()),
    "patches": (_patches, ("projection",)),
    "classes": (_classes, ("projection",)),
    "pixels": (_pixels, ("pixel",)),
    "keypoints_ndc": (_keypoints, ("keypoint",)),
    "predicted_keypoints_ndc": (_predicted_keypoints, ("keypoint",)),
    "target_keypoints_ndc": (_target_keypoints, ("keypoint",)),
    "class_keypoints_ndc": (_class_keypoints, ("class_keypoint",)),
    "keypoint_classes": (_keypoint_classes, ("keypoint", "keypoint_prototypes")),
    "pred_affine": (_affine, ("affine",)),
    "pred_displacement": (_displacement, ("displacement",)),
    "thumbnail": (_thumbnail, ("thumbnail",)),
    "point_thumbnail": (_point_thumbnail, ("keypoint", "point_thumbnail")),
    "class_hog": (_class_hog, ("class_hog",)),
    "point_hog": (_point_hog, ("keypoint", "point_hog")),
    "patch_hog": (_patch_hog, ("patch_hog",)),
    "hog_targets": (_hog_targets, ()),
    "dense": (_dense, ("dense",)),
}
