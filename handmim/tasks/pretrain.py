"""Self-supervised pretraining: encode by the student, encode by the EMA teacher, sum objectives.

HandMIM and the methods it is compared with are settings of this one task. The paper states its
structure (teacher-student, pseudo-keypoint alignment on the class token, masked patch
self-distillation, pixel reconstruction); how each part is formulated is ours, by config values.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor, nn

from handmim.data.views import ViewMaker
from handmim.diagnostics.images import draw_pretraining
from handmim.engine.checkpoint import LAST, check_config, load_checkpoint
from handmim.engine.optim import Schedule, as_schedule
from handmim.models.pyramid import Pyramid
from handmim.models.teacher import Centering, EmaTeacher, Sinkhorn
from handmim.models.vit import ViT
from handmim.models.weights.load import InitialWeights, load_initial
from handmim.objectives.base import LAST_BLOCK, READS, Objective, Setup, StepContext, call
from handmim.objectives.distillation import ProjectionHead
from handmim.objectives.experimental import LowResRecon
from handmim.objectives.keypoints import keypoint_diagnostics
from handmim.objectives.pixel_recon import PixelRecon
from handmim.types import PretrainBatch, StepInfo, StepResult, Task, Tokens
from handmim.utils.arguments import one_of
from handmim.utils.config import build, drop_unbuilt
from handmim.utils.renames import rename_old_entries


class HandMimTask(Task):
    """One step: teacher on whole views, student on masked ones, objectives. Raises: ValueError for
    no objective, or one without its head or tokens."""

    def __init__(
        self,
        backbone: ViT,  # the student's; the teacher starts as its copy
        objectives: Mapping[str, Objective],  # their weighted losses are summed in this order
        # Constructors of shared heads, `projection`, `keypoint` and `neck`; built where they are
        # read.
        heads: Mapping[str, Callable[..., nn.Module]] | None = None,
        *,
        centering: Callable[..., Centering | Sinkhorn] = Centering,  # takes `num_prototypes=`
        momentum: float | Schedule = 0.996,
        teacher_temp: float | Schedule = 0.04,  # of prototype targets
        mask_mode: str = "replace",  # by the mask token, or "drop" from the encoder
        freeze_prototypes_steps: int = 0,
        export: str = "teacher",  # or "student": whose backbone is exported
        layer_decay: float = 1.0,  # factor on the backbone's rate per layer below the top
        patch_embed_lr_scale: float = 1.0,  # further factor on that of the patch embedding
    ) -> None:
        super().__init__()
        one_of("mask_mode", mask_mode, ("replace", "drop"))
        one_of("export", export, ("teacher", "student"))
        if not objectives:
            raise ValueError("no objective is configured (objective=[...])")
        self.export, self.drops_masked = export, mask_mode == "drop"
        sizes = backbone.embed_dim, backbone.patch_px, backbone.grid_hw, backbone.depth
        setup = Setup(*sizes, heads=heads or {}, centering=centering)
        setup.drops_masked = self.drops_masked
        for objective in sorted(objectives.values(), key=lambda o: o.built_last):
            setup.build(objective)
        self.student = nn.ModuleDict({"backbone": backbone, **setup.built})
        self.objectives, self.each = nn.ModuleDict(dict(objectives)), dict(objectives)
        self.weights = {name: as_schedule(o.weight) for name, o in objectives.items()}
        self.reads = self._all_reads(setup)
        each = objectives.values()
        self.taps = tuple(dict.fromkeys(block for o in each for block in o.taps))
        # Distributed training would wait for parameters that no loss can reach.
        self.ends_at_taps = all(o.taps and LAST_BLOCK.isdisjoint(o.reads) for o in each)
        if self.ends_at_taps:
            backbone.net.blocks[max(self.taps) :].requires_grad_(False)
        if self.drops_masked:
            backbone.mask_token.requires_grad_(False)
        self.needs_teacher = any(read.startswith("teacher_") for read in self.reads)
        self.teacher: EmaTeacher | None = None
        if self.needs_teacher or export == "teacher":
            self.teacher = EmaTeacher(self.followed())
        self.patch_px = backbone.patch_px
        self.momentum, self.teacher_temp = as_schedule(momentum), as_schedule(teacher_temp)
        self.freeze_prototypes_steps = freeze_prototypes_steps
        self.layer_decay, self.patch_embed_lr_scale = layer_decay, patch_embed_lr_scale
        self.register_load_state_dict_pre_hook(rename_old_entries)

    def _all_reads(self, setup: Setup) -> frozenset[str]:
        """What all objectives read, with what a shared keypoint head reads."""
        reads_patches = getattr(setup.built.get("keypoint"), "reads_patches", False)
        reads: set[str] = set()
        for name, objective in self.each.items():
            own = set(objective.reads)
            if unknown := sorted(own - set(READS)):
                raise ValueError(
                    f"objective {name} reads {unknown}, which must be among {sorted(READS)}"
                )
            if reads_patches and "keypoints" in own:
                own |= {"masked_patches", "visible_patches"}
            if reads_patches and "teacher_keypoints" in own:
                own.add("teacher_patches")
            if self.drops_masked and "masked_patches" in own:
                raise ValueError(
                    f"mask_mode=drop leaves no tokens at masked patches, but objective {name} "
                    "reads them (task.mask_mode=replace; pixel_recon: head=decoder)"
                )
            reads |= own
        return frozenset(reads)

    def followed(self) -> nn.ModuleDict:
        """The student's modules that the teacher follows, under the teacher's names."""
        modules = dict(self.student.items())
        for name, objective in self.each.items():
            if taken := sorted(modules.keys() & set(objective.ema)):
                module = f"a module {taken[0]!r}, a name that is taken: rename it"
                raise ValueError(f"objective {name} gives the teacher {module}")
            modules |= {child: getattr(objective, child) for child in objective.ema}
        return nn.ModuleDict(modules)

    def load_initial(self, source: str) -> InitialWeights:
        """Fill student and teacher backbones from weights: see `models.weights.load`."""
        backbone: Any = self.student["backbone"]
        report = load_initial(backbone, source)
        if self.teacher is not None:
            self.teacher.net["backbone"].load_state_dict(backbone.state_dict())
        return report

    def encode(self, batch: PretrainBatch, info: StepInfo) -> StepContext:
        """Tokens of both networks; no more of them than the objectives read."""
        views, is_masked = batch.views.flatten(0, 1), batch.is_masked.flatten(0, 1)
        backbone, reads = self.student["backbone"], self.reads
        masked_idx = batch.masked_idx if self.training else None
        # Then the last block need not finish the other patches.
        masked_alone = not (self.drops_masked or self.taps or "visible_patches" in reads)
        local = batch.local_views if "local_cls" in reads else None
        student = backbone(
            views,
            is_masked,
            drop_masked=self.drops_masked,
            taps=self.taps,
            patch_idx=masked_idx if masked_alone else None,
            local=None if local is None else local.flatten(0, 1),
        )
        teacher: Tokens | None = None
        if self.teacher is not None and self.needs_teacher:
            patch_idx = None if "teacher_patches" in reads else masked_idx
            with torch.inference_mode():
                teacher = self.teacher.net["backbone"](views, patch_idx=patch_idx)
        points: Tensor | None = None
        if "keypoints" in reads:
            points = self.student["keypoint"](student).unflatten(0, batch.views.shape[:2])
        return StepContext(
            batch,
            info,
            student,
            teacher,
            points=points,
            heads=self.student,
            teacher_heads=None if self.teacher is None else self.teacher.net,
            reads=reads,
            taps=self.taps,
            teacher_temp=self.teacher_temp(*info),
            freeze_prototypes=info.step < self.freeze_prototypes_steps,
            drops_masked=self.drops_masked,
            ends_at_taps=self.ends_at_taps,
            training=self.training,
        )

    def predict(self, batch: PretrainBatch, info: StepInfo) -> tuple[StepContext, dict[str, Any]]:
        """Encode, then what the heads of every objective make of the tokens."""
        ctx = self.encode(batch, info)
        return ctx, {name: call(name, o.predict, ctx) for name, o in self.each.items()}

    def forward(self, batch: PretrainBatch, info: StepInfo) -> StepResult:
        """Losses and diagnostics of one batch."""
        ctx, predictions = self.predict(batch, info)
        losses: list[Tensor] = []
        scalars: dict[str, Tensor] = {}
        for name, objective in self.each.items():
            value = call(name, objective.loss, ctx, predictions[name])
            scalars[f"loss/{name}"] = value.detach()
            # A weight of 0 counts 0 times: parameters stay in the graph of distributed training.
            losses.append(self.weights[name](*info) * value)
        loss = sum(losses[1:], start=losses[0])
        for name, objective in self.each.items():
            for prefix, targets in objective.targets(predictions[name]).items():
                if len(targets.teacher_probs):
                    scalars |= targets.diagnostics(prefix)
        if "keypoints" in self.reads:
            scalars |= keypoint_diagnostics(ctx.keypoints.detach(), batch)
        scalars["features/cls_std"] = ctx.tokens.cls.detach().float().std(dim=0).mean()
        return StepResult(loss=loss, scalars={"loss": loss.detach(), **scalars})

    def before_update(self, info: StepInfo) -> None:
        """Frozen prototypes are left alone: no update, no decay, no moments."""
        if info.step < self.freeze_prototypes_steps:
            for head in self.modules():
                if isinstance(head, ProjectionHead):
                    head.cancel_last_layer_gradients()

    @torch.no_grad()
    def after_step(self, info: StepInfo) -> dict[str, float]:
        """The teacher follows the student; centres of targets move."""
        for objective in self.each.values():
            objective.after_step()
        if self.teacher is None:
            return {}
        momentum = self.momentum(*info)
        self.teacher.update(self.followed(), momentum)
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
    def exported(self) -> Any:
        """Backbone and shared heads worth keeping: the teacher's, or the student's."""
        teacher = None if self.export == "student" else self.teacher
        return self.student if teacher is None else teacher.net

    @property
    def export_backbone(self) -> ViT:
        """The backbone worth keeping."""
        return self.exported["backbone"]

    @property
    def export_neck(self) -> Pyramid | None:
        """The pyramid worth keeping; None where no objective trains one."""
        return dict(self.exported.items()).get("neck")

    @torch.no_grad()
    def features(self, image: Tensor) -> Tokens:
        """Tokens of whole images [B, 3, H, W] in [0, 1] from the exported network; for probes."""
        return self.export_backbone(image)

    @torch.no_grad()
    def keypoints(self, tokens: Tokens) -> Tensor | None:
        """[B, K, d] pseudo-keypoints of `features`, ndc; None when the task has none."""
        return self.exported["keypoint"](tokens) if "keypoint" in self.exported else None

    @torch.no_grad()
    def images(self, batch: PretrainBatch) -> dict[str, NDArray[np.uint8]]:
        """Images of a batch: views and masks, reconstructions, pseudo-keypoints."""
        ctx, predictions = self.predict(batch, StepInfo(step=0, total_steps=1))
        low_res = {n: predictions[n] for n, o in self.each.items() if isinstance(o, LowResRecon)}
        drawn: dict[str, Any] = {"points": ctx.points, "low_res": low_res}
        for name, objective in self.each.items():
            if isinstance(objective, PixelRecon):
                drawn["pixels"] = predictions[name]
                drawn["min_var"] = objective.min_var if objective.per_patch_norm else None
        return draw_pretraining(batch, self.patch_px, **drawn)


def method_of_run(run: str, with_weights: bool = True) -> HandMimTask:
    """The task of a pretraining, from last.pt of its folder; without its weights a fresh one."""
    saved = _pretraining(run)
    config = OmegaConf.create(saved["config"])
    drop_unbuilt(config.task)
    task = build(config.task)
    if not isinstance(task, HandMimTask):
        raise ValueError(f"{run} is no pretraining of handmim (unlabeled.terms.pretext.run)")
    if with_weights:
        task.load_state_dict(saved["task"])
    return task


def views_of_run(run: str) -> ViewMaker:
    """What a pretraining makes of its crops."""
    views = build(OmegaConf.create(_pretraining(run)["config"]).views)
    if not isinstance(views, ViewMaker):
        raise ValueError(f"{run} makes no views of crops (unlabeled.terms.pretext.run)")
    return views


def _pretraining(run: str) -> dict[str, Any]:
    path, key = Path(run) / LAST, f"unlabeled.terms.pretext.run={run}"
    if not path.is_file():
        raise FileNotFoundError(f"{key}: no {LAST} there, the folder of a pretraining is required")
    saved = load_checkpoint(path)
    config = saved.get("config")
    if not isinstance(config, dict) or not {"task", "views"} <= config.keys():
        raise ValueError(f"{key} is no pretraining: its config has no views")
    check_config(config, path)
    return saved
