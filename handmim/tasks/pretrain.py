"""Self-supervised pretraining: a student, perhaps its EMA teacher, heads, one loss sum.

HandMIM and the methods it is compared with are settings of this one task: which losses, which
heads, what is hidden and how, who is exported. The paper states HandMIM's structure
(teacher-student, pseudo-keypoint alignment on the class token, masked patch self-distillation,
pixel reconstruction); how each part is formulated here is ours and every choice is a config value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from handmim.diagnostics.images import draw_pretraining
from handmim.diagnostics.statistics import keypoint_diagnostics, target_diagnostics
from handmim.engine.schedule import Schedule, as_schedule
from handmim.losses import pixel_recon
from handmim.losses.total import LossSum, Weighted
from handmim.models.heads.pixel import tap_blocks
from handmim.models.heads.projection import ProjectionHead
from handmim.models.teacher import EmaTeacher
from handmim.models.vit import ViT
from handmim.models.weights.load import InitialWeights, load_initial
from handmim.tasks.pretrain_heads import (
    FOLLOWED,
    build_heads,
    check_heads,
    freeze_unread,
    read_whole,
)
from handmim.tasks.pretrain_outputs import MAKERS, Seen, projected
from handmim.types import PretrainBatch, PretrainOutputs, StepInfo, StepResult, Tokens

OF_TEACHER = ("patches", "classes", "keypoint_classes")  # fields whose targets are the teacher's
CHOICES = {
    "keypoint_target": ("ema", "student"),
    "redraw_from": ("own", "other"),
    "class_head": ("shared", "own"),
    "mask_mode": ("replace", "drop"),
    "export": ("teacher", "student"),
}


@dataclass(frozen=True)
class PixelOptions:
    """What is reconstructed, beside hidden patches of the augmented view.

    Args:
        clean_target: pixels before colour augmentation.
        visible_share: this share of the visible patches too.
    """

    clean_target: bool = False
    visible_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.visible_share <= 1.0:
            raise ValueError(
                f"visible_share is a share, got {self.visible_share} (task.pixel.visible_share)"
            )


class HandMimTask(nn.Module):
    """One step: teacher on whole views, student on masked ones, heads, losses.

    Args:
        backbone: the student's ViT; the teacher starts as its copy.
        heads: constructors by name, called with the sizes they ask for (`dim=`, `patch_px=`,
            `grid_hw=`, `num_keypoints=`, `num_dims=`). Each loss brings its own.
        losses: weighted terms by name.
        centering: constructor of the target normaliser, called with `num_prototypes=`, once for
            patches and once for class tokens.
        momentum: of the EMA teacher.
        teacher_temp: temperature of the patch targets.
        class_teacher_temp: of the class targets; None takes `teacher_temp`.
        class_head: class tokens go through the patches' projection head ("shared") or through one
            of their "own" of the same make.
        keypoint_target: points are matched with those of the "ema" teacher (no gradient) or of the
            "student" itself (gradient through both sides).
        redraw_from: points that redraw a view or tell its contours are its "own", or those of the
            "other" view carried over by the known map, where only what moves like a place helps.
        mask_mode: hidden patches are "replace"d by the mask token or "drop"ped from the encoder.
        pixel: `PixelOptions` or its fields.
        freeze_prototypes_steps: prototypes stay as initialised that long.
        export: whose backbone is kept: "teacher" or "student".
        layer_decay: factor on the backbone's learning rate per layer below the top.
        patch_embed_lr_scale: further factor on that of the patch embedding.
    Raises: ValueError for an unknown choice, head, or a loss without its head.
    """

    def __init__(
        self,
        backbone: ViT,
        heads: Mapping[str, Callable[..., nn.Module]],
        losses: Mapping[str, Weighted],
        *,
        centering: Callable[..., nn.Module],
        momentum: float | Schedule = 0.996,
        teacher_temp: float | Schedule = 0.04,
        class_teacher_temp: float | Schedule | None = None,
        class_head: str = "shared",
        keypoint_target: str = "ema",
        redraw_from: str = "own",
        mask_mode: str = "replace",
        pixel: PixelOptions | Mapping[str, Any] | None = None,
        freeze_prototypes_steps: int = 0,
        export: str = "teacher",
        layer_decay: float = 1.0,
        patch_embed_lr_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.keypoint_target, self.redraw_from = keypoint_target, redraw_from
        self.class_head, self.mask_mode, self.export = class_head, mask_mode, export
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name} must be one of {valid}, got {getattr(self, name)!r} (task.{name})"
                )
        self.losses = LossSum(losses)
        self.fields = tuple(f for f in MAKERS if f in self.losses.needs)
        built = build_heads(backbone, heads, self.fields, class_head=class_head)
        check_heads(built, self.fields, mask_mode=mask_mode)
        freeze_unread(backbone, built, self.fields, mask_mode=mask_mode)
        # Then the last block need not finish the other patches.
        whole = "pixels" in self.fields or bool(read_whole(built, self.fields))
        self.reads_hidden_alone = mask_mode == "replace" and not whole
        self.student = nn.ModuleDict({"backbone": backbone, **built})
        self.needs_teacher = any(f in OF_TEACHER for f in self.fields) or (
            keypoint_target == "ema" and "target_keypoints_ndc" in self.fields
        )
        self.teacher: EmaTeacher | None = None
        if self.needs_teacher or export == "teacher":
            followed = {k: v for k, v in self.student.items() if k in ("backbone", *FOLLOWED)}
            self.teacher = EmaTeacher(nn.ModuleDict(followed))
        self.centering = nn.ModuleDict()
        for field in (f for f in OF_TEACHER if f in self.fields):
            head: Any = self.student[
                "keypoint_prototypes" if field == "keypoint_classes" else "projection"
            ]
            self.centering[field] = centering(num_prototypes=head.num_prototypes)
        self.patch_px = backbone.patch_px
        self.momentum, self.teacher_temp = as_schedule(momentum), as_schedule(teacher_temp)
        self.class_teacher_temp = (
            self.teacher_temp if class_teacher_temp is None else as_schedule(class_teacher_temp)
        )
        self.pixel = pixel if isinstance(pixel, PixelOptions) else PixelOptions(**(pixel or {}))
        self.freeze_prototypes_steps = freeze_prototypes_steps
        self.layer_decay, self.patch_embed_lr_scale = layer_decay, patch_embed_lr_scale

    def load_initial(self, source: str) -> InitialWeights:
        """Fill student and teacher backbones from weights: see `models.weights.load`."""
        backbone = self.student["backbone"]
        assert isinstance(backbone, ViT)
        report = load_initial(backbone, source)
        if self.teacher is not None:
            self.teacher.net["backbone"].load_state_dict(backbone.state_dict())
        return report

    @property
    def _reads_whole_teacher(self) -> bool:
        """Whether tokens of the teacher are read at patches that are not hidden: by a centre over
        all of them, or by points that are sought among them."""
        sought = self.keypoint_target == "ema" and any(
            getattr(head, "reads_patches", False) for head in self.student.values()
        )
        return sought or any(
            getattr(centering, "over", "") == "all"
            for field, centering in self.centering.items()
            if field == "patches"
        )

    def teacher_head(self, name: str) -> nn.Module:
        """The teacher's copy of a head."""
        assert self.teacher is not None
        return self.teacher.net[name]

    def prototypes_frozen(self, info: StepInfo) -> bool:
        """Whether prototypes stay where they are in this step."""
        return info.step < self.freeze_prototypes_steps

    def outputs(self, batch: PretrainBatch, info: StepInfo) -> tuple[PretrainOutputs, Tokens]:
        """All parts the losses look at, and the student's tokens [B*G, ...]."""
        views, is_masked = batch.views.flatten(0, 1), batch.is_masked.flatten(0, 1)
        shape = batch.views.shape[:2]
        backbone: Any = self.student["backbone"]
        taps: tuple[int, ...] = ()
        if "pixels" in self.fields:
            head: Any = self.student["pixel"]
            taps = tap_blocks(head.tap_layers, backbone.depth)
        drop = self.mask_mode == "drop"
        local = batch.local_views if "classes" in self.fields else None
        student = backbone(
            views,
            is_masked,
            drop_masked=drop,
            taps=taps,
            places=batch.masked_idx if self.training and self.reads_hidden_alone else None,
            local=None if local is None else local.flatten(0, 1),
        )
        teacher: Tokens | None = None
        if self.needs_teacher:
            hidden_alone = self.training and not self._reads_whole_teacher
            places = batch.masked_idx if hidden_alone else None
            with torch.inference_mode():
                teacher = self.teacher_head("backbone")(views, places=places)
        points: Tensor | None = None
        if any("keypoint" in MAKERS[f][1] for f in self.fields):
            points = self.student["keypoint"](student).unflatten(0, shape)
        seen = Seen(batch, info, student, teacher, points)
        seen = seen._replace(projected=projected(self, seen))
        made = {field: MAKERS[field][0](self, seen) for field in self.fields}
        return PretrainOutputs(**made), student

    def forward(self, batch: PretrainBatch, info: StepInfo) -> StepResult:
        """Losses and monitors of one batch."""
        out, student = self.outputs(batch, info)
        loss, scalars = self.losses(out, batch, info)
        if out.keypoints_ndc is not None:
            scalars |= keypoint_diagnostics(out.keypoints_ndc.detach(), batch)
        if out.patches is not None and len(out.patches.teacher_probs):
            scalars |= target_diagnostics(out.patches.teacher_probs)
        if out.classes is not None:
            probs = out.classes.teacher_probs.flatten(0, 1)
            scalars |= target_diagnostics(probs, prefix="class_targets")
        cls = student.cls.detach().float()
        scalars["features/cls_std"] = cls.std(dim=0).mean()
        return StepResult(loss=loss, scalars={"loss": loss.detach(), **scalars})

    def before_update(self, info: StepInfo) -> None:
        """Frozen prototypes are left alone: no update, no decay, no moments."""
        if self.prototypes_frozen(info):
            for head in self.student.values():
                if isinstance(head, ProjectionHead):
                    head.forget_prototype_gradients()

    @torch.no_grad()
    def after_step(self, info: StepInfo) -> dict[str, float]:
        """Teacher follows the student, centres what the teacher said."""
        for centering in self.centering.values():
            centering.move()  # type: ignore[operator]
        if self.teacher is None:
            return {}
        momentum = self.momentum(info.step, info.total_steps)
        followed = nn.ModuleDict({name: self.student[name] for name in self.teacher.net})
        self.teacher.update(followed, momentum)
        return {"schedule/momentum": momentum}

    def lr_scales(self) -> dict[str, float]:
        """Lower rates towards the backbone's input; all 1 by default."""
        backbone: Any = self.student["backbone"]
        top = backbone.depth + 1
        return {
            f"student.backbone.{name}": self.layer_decay ** (top - backbone.layer_of(name))
            * (self.patch_embed_lr_scale if name.startswith("net.patch_embed.") else 1.0)
            for name, _ in backbone.named_parameters()
        }

    @property
    def exported(self) -> nn.ModuleDict:
        """Backbone and heads worth keeping: the teacher's, or the student's."""
        if self.export == "student":
            return self.student
        assert self.teacher is not None
        return self.teacher.net

    @property
    def export_backbone(self) -> ViT:
        """The backbone worth keeping."""
        backbone = self.exported["backbone"]
        assert isinstance(backbone, ViT)
        return backbone

    @torch.no_grad()
    def features(self, image: Tensor) -> Tokens:
        """Tokens of whole pictures [B, 3, H, W] in [0, 1] from the exported side; for probes."""
        return self.export_backbone(image)

    @torch.no_grad()
    def keypoints(self, tokens: Tokens) -> Tensor | None:
        """[B, K, d] pseudo-keypoints of `features`, ndc; None when the task has none."""
        return self.exported["keypoint"](tokens) if "keypoint" in self.exported else None

    @torch.no_grad()
    def images(self, batch: PretrainBatch) -> dict[str, NDArray[np.uint8]]:
        """Views and masks, reconstructions, pseudo-keypoints: what this batch looked like."""
        training = self.training
        self.eval()
        try:
            out, _ = self.outputs(batch, StepInfo(step=0, total_steps=1))
        finally:
            self.train(training)
        pixel = [t for t in self.losses.terms.values() if isinstance(t, pixel_recon.Term)]
        min_var = pixel[0].min_var if pixel and pixel[0].per_patch_norm else None
        return draw_pretraining(batch, out, self.patch_px, min_var=min_var)
