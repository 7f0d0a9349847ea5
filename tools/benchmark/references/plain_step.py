"""iBOT's training step (Zhou et al. 2022, arXiv 2111.07832) as one writes it down first.

Heads, logits and losses run on the tokens of all patches and the mask comes last; attention is
written out; gradients are clipped, moved and averaged tensor by tensor, each with a number fetched
from the device. The same mathematics as ours: `tests/tools/benchmark` compares both.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.models.vit import ViT
from handmim.objectives.distillation import ProjectionHead
from handmim.types import PretrainBatch

NO_DECAY = ("pos_embed", "cls_token", "mask_token")


def plain_tokens(backbone: ViT, views: Tensor, masked: Tensor | None) -> Tensor:
    """[V, 1 + N, D] tokens of a timm ViT, its blocks written out."""
    net = backbone.net
    x = net.patch_embed(backbone.normalise(views))
    if masked is not None:
        x = torch.where(masked.unsqueeze(-1), backbone.mask_token.to(x.dtype), x)
    x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], dim=1) + net.pos_embed
    for block in net.blocks:
        x = x + plain_drop_path(block.drop_path1, plain_attention(block.attn, block.norm1(x)))
        x = x + plain_drop_path(block.drop_path2, block.mlp(block.norm2(x)))
    return net.norm(x)


def plain_attention(attn: Any, x: Tensor) -> Tensor:
    """[V, T, D] to the same: multiply, soften, multiply, project."""
    v, t, d = x.shape
    qkv = attn.qkv(x).reshape(v, t, 3, attn.num_heads, d // attn.num_heads).permute(2, 0, 3, 1, 4)
    weights = (qkv[0] @ qkv[1].transpose(-2, -1)) * attn.scale
    mixed = weights.softmax(dim=-1) @ qkv[2]
    return attn.proj(mixed.transpose(1, 2).reshape(v, t, d))


def plain_drop_path(module: Any, x: Tensor) -> Tensor:
    """Branches of some samples left out, the others scaled up."""
    rate = getattr(module, "drop_prob", 0.0)
    if not module.training or not rate:
        return x
    kept = torch.rand(len(x), 1, 1, device=x.device) >= rate
    return x.div(1 - rate) * kept


class PlainStep:
    """Student, teacher, centres and optimizer of a step.

    Args:
        backbone, head: the student's; copied.
        lr, weight_decay, momentum, clip_norm: constants.
        student_temp, teacher_temp, centre_momentum: of the losses.
        precision: "32-true" or "bf16-mixed".
        over: the patches whose mean logit the centre follows, "all" (iBOT) or "masked" (DINOv2).
    """

    def __init__(
        self,
        backbone: ViT,
        head: ProjectionHead,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        clip_norm: float,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        centre_momentum: float = 0.9,
        precision: str = "32-true",
        over: str = "all",
    ) -> None:
        modules = nn.ModuleDict({"backbone": backbone, "projection": head})
        self.student, self.teacher = copy.deepcopy(modules).train(), copy.deepcopy(modules).eval()
        self.teacher.requires_grad_(False)
        self.momentum, self.clip_norm = momentum, clip_norm
        self.student_temp, self.teacher_temp = student_temp, teacher_temp
        self.centre_momentum, self.over = centre_momentum, over
        device = head.prototypes.device
        self.class_centre = torch.zeros(head.num_prototypes, device=device)
        self.patch_centre = torch.zeros(head.num_prototypes, device=device)
        self.is_mixed = precision == "bf16-mixed"
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for name, p in self.student.named_parameters():
            if p.requires_grad:
                (others if p.ndim < 2 or name.endswith(NO_DECAY) else decayed).append(p)
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, foreach=False, fused=False)

    def losses(self, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
        """Class and patch term; centres move."""
        num, g = batch.views.shape[:2]
        views, masked = batch.views.flatten(0, 1), batch.is_masked.flatten(0, 1)
        with torch.no_grad():
            t_cls, t_patch = self._logits(self.teacher, views, None)
            p_cls = ((t_cls - self.class_centre) / self.teacher_temp).softmax(dim=-1)
            p_patch = ((t_patch - self.patch_centre) / self.teacher_temp).softmax(dim=-1)
        s_cls, s_patch = self._logits(self.student, views, masked)
        p_cls, s_cls = p_cls.unflatten(0, (num, g)), s_cls.unflatten(0, (num, g))
        class_loss, terms = torch.zeros((), device=views.device), 0
        for q in range(g):
            for v in range(g):
                if q != v:
                    log_p = F.log_softmax(s_cls[:, v] / self.student_temp, dim=-1)
                    class_loss = class_loss - (p_cls[:, q] * log_p).sum(dim=-1).mean()
                    terms += 1
        each = -(p_patch * F.log_softmax(s_patch / self.student_temp, dim=-1)).sum(dim=-1)
        mask = masked.to(each.dtype)
        patch_loss = ((each * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
        with torch.no_grad():
            keep = self.centre_momentum
            self.class_centre = keep * self.class_centre + (1 - keep) * t_cls.mean(dim=0)
            counted = t_patch[masked] if self.over == "masked" else t_patch.flatten(0, 1)
            mean = counted.mean(dim=0)
            self.patch_centre = keep * self.patch_centre + (1 - keep) * mean
        return class_loss / terms, patch_loss

    def __call__(self, batch: PretrainBatch) -> dict[str, float]:
        """One update; its losses."""
        device = batch.views.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.is_mixed):
            class_loss, patch_loss = self.losses(batch)
            loss = class_loss + patch_loss
        losses = {"loss": loss.item(), "class": class_loss.item(), "patch": patch_loss.item()}
        self.optimizer.zero_grad()
        loss.backward()
        for p in self.student.parameters():
            if p.grad is not None:
                factor = self.clip_norm / (p.grad.norm().item() + 1e-6)
                if factor < 1:
                    p.grad.mul_(factor)
        self.optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                mine.mul_(self.momentum).add_(theirs.detach(), alpha=1 - self.momentum)
        return losses

    @staticmethod
    def _logits(net: nn.ModuleDict, views: Tensor, masked: Tensor | None) -> tuple[Tensor, Tensor]:
        """[V, P] of class tokens and [V, N, P] of all patches, in full precision."""
        backbone: Any = net["backbone"]
        logits = net["projection"](plain_tokens(backbone, views, masked))
        return logits[:, 0], logits[:, 1:]
