"""HandMIM pretraining: student and EMA teacher, three granularities, one loss sum.

The paper states the structure (teacher-student, pseudo-keypoint alignment on the class token,
masked patch self-distillation, pixel reconstruction); how each part is formulated here is ours and
every choice is a config value.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from handmim.contracts import (
    PatchTargets,
    PixelTargets,
    PretrainBatch,
    PretrainOutputs,
    StepInfo,
    StepResult,
    Tokens,
)
from handmim.engine.schedule import Schedule, as_schedule
from handmim.losses import pixel_recon
from handmim.losses.total import LossSum, Weighted
from handmim.models.heads.pixel import patchify
from handmim.models.teacher import EmaTeacher
from handmim.models.vit import ViT
from handmim.tasks.monitors import keypoint_monitors, target_monitors
from handmim.tasks.pretrain_pictures import draw_pretraining

HEADS = ("projection", "keypoint", "pixel", "affine", "thumbnail")
KEYPOINT_TARGETS = ("ema", "student")


class HandMimTask(nn.Module):
    """One step: teacher on whole views, student on masked ones, heads, losses.

    Args:
        backbone: the student's ViT; the teacher starts as its copy.
        heads: constructors by name, called with `dim=`, and `patch_px=` for "pixel". Each loss
            brings its own.
        losses: weighted terms by name.
        momentum: of the EMA teacher.
        teacher_temp: temperature of the patch targets.
        centering: constructor of the target normaliser, called with `num_prototypes=`.
        keypoint_target: points are matched with those of the "ema" teacher (no gradient) or of the
            "student" itself (gradient through both sides).
        freeze_prototypes_steps: prototypes stay as initialised that long.
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
        keypoint_target: str = "ema",
        freeze_prototypes_steps: int = 0,
    ) -> None:
        super().__init__()
        unknown = sorted(set(heads) - set(HEADS))
        if unknown:
            raise ValueError(f"unknown heads {unknown}, valid are {HEADS} (task.heads)")
        if keypoint_target not in KEYPOINT_TARGETS:
            raise ValueError(
                f"keypoint_target must be one of {KEYPOINT_TARGETS}, got {keypoint_target!r}"
                " (task.keypoint_target)"
            )
        built = {
            name: make(dim=backbone.embed_dim, patch_px=backbone.patch_px)
            if name == "pixel"
            else make(dim=backbone.embed_dim)
            for name, make in heads.items()
        }
        self.student = nn.ModuleDict({"backbone": backbone, **built})
        followed = {"backbone": backbone} | {
            k: v for k, v in built.items() if k in ("projection", "keypoint")
        }
        self.teacher = EmaTeacher(nn.ModuleDict(followed))
        self.centering: Any = (
            centering(num_prototypes=built["projection"].num_prototypes)
            if "projection" in built
            else None
        )
        self.patch_px = backbone.patch_px
        self.losses = LossSum(losses)
        self.momentum, self.teacher_temp = as_schedule(momentum), as_schedule(teacher_temp)
        self.keypoint_target = keypoint_target
        self.freeze_prototypes_steps = freeze_prototypes_steps

    def _patch_targets(
        self, student: Tokens, teacher: Tokens, is_masked: Tensor, info: StepInfo
    ) -> PatchTargets:
        """Logits and targets of the masked patches only; the centre moves with them."""
        where = is_masked.flatten().nonzero().squeeze(1)  # [M]
        head: nn.Module = self.student["projection"]
        frozen = info.step < self.freeze_prototypes_steps
        logits = head(student.patches.flatten(0, 1)[where], freeze_prototypes=frozen)
        with torch.no_grad():
            teacher_logits = self.teacher.net["projection"](teacher.patches.flatten(0, 1)[where])
            assert self.centering is not None
            temp = self.teacher_temp(info.step, info.total_steps)
            probs = self.centering(teacher_logits, temp)
            if self.training:
                self.centering.update(teacher_logits)
        return PatchTargets(logits, probs, _per_view_weight(is_masked)[where], len(is_masked))

    def outputs(self, batch: PretrainBatch, info: StepInfo) -> tuple[PretrainOutputs, Tokens]:
        """All parts the losses look at, and the student's tokens [B*G, ...]."""
        views, is_masked = batch.views.flatten(0, 1), batch.is_masked.flatten(0, 1)
        shape = batch.views.shape[:2]
        student = self.student["backbone"](views, is_masked)
        out: dict[str, Any] = {}
        needs_ema_points = "keypoint" in self.student and self.keypoint_target == "ema"
        teacher: Tokens | None = None
        if "projection" in self.student or needs_ema_points:
            with torch.no_grad():
                teacher = self.teacher.net["backbone"](views)
        if "projection" in self.student:
            assert teacher is not None
            out["patches"] = self._patch_targets(student, teacher, is_masked, info)
        if "keypoint" in self.student:
            points = self.student["keypoint"](student.cls).unflatten(0, shape)
            out["keypoints_ndc"] = out["target_keypoints_ndc"] = points
            if needs_ema_points:
                assert teacher is not None
                with torch.no_grad():
                    target = self.teacher.net["keypoint"](teacher.cls).unflatten(0, shape)
                out["target_keypoints_ndc"] = target
        if "pixel" in self.student:
            where = is_masked.flatten().nonzero().squeeze(1)
            pred = self.student["pixel"](student.patches.flatten(0, 1)[where])
            target = patchify(views, self.patch_px).flatten(0, 1)[where]
            weight = _per_view_weight(is_masked)[where]
            out["pixels"] = PixelTargets(pred, target, weight, len(is_masked))
        cls = student.cls.unflatten(0, shape)
        if "affine" in self.student:
            out["pred_affine"] = self.student["affine"](cls, cls.roll(-1, dims=1))
        if "thumbnail" in self.student:
            out["thumbnail"] = self.student["thumbnail"](cls)
        return PretrainOutputs(**out), student

    def forward(self, batch: PretrainBatch, info: StepInfo) -> StepResult:
        """Losses and monitors of one batch."""
        out, student = self.outputs(batch, info)
        loss, scalars = self.losses(out, batch, info)
        if out.keypoints_ndc is not None:
            scalars |= keypoint_monitors(out.keypoints_ndc.detach(), batch.source_from_view)
        if out.patches is not None and len(out.patches.teacher_probs):
            scalars |= target_monitors(out.patches.teacher_probs)
        cls = student.cls.detach().float()
        scalars["features/cls_std"] = cls.std(dim=0).mean()
        return StepResult(loss=loss, scalars={"loss": loss.detach(), **scalars})

    @torch.no_grad()
    def after_step(self, info: StepInfo) -> dict[str, float]:
        """Teacher follows the student."""
        momentum = self.momentum(info.step, info.total_steps)
        followed = nn.ModuleDict({name: self.student[name] for name in self.teacher.net})
        self.teacher.update(followed, momentum)
        return {"schedule/momentum": momentum}

    def lr_scales(self) -> dict[str, float]:
        """All parameters learn at the same rate."""
        return {}

    @property
    def export_backbone(self) -> ViT:
        """The backbone worth keeping: the teacher's."""
        backbone = self.teacher.net["backbone"]
        assert isinstance(backbone, ViT)
        return backbone

    @torch.no_grad()
    def features(self, image: Tensor) -> Tokens:
        """Teacher tokens of whole pictures [B, 3, H, W] in [0, 1]; for probes."""
        return self.export_backbone(image)

    @torch.no_grad()
    def pictures(self, batch: PretrainBatch) -> dict[str, NDArray[np.uint8]]:
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


def _per_view_weight(is_masked: Tensor) -> Tensor:
    """[B*G, N] bool to [B*G*N] weights 1 / (masked patches of the view)."""
    per_view = is_masked.sum(dim=1, keepdim=True).clamp(min=1)
    return (1.0 / per_view.float()).expand_as(is_masked).flatten()
