"""Schedules, and the optimizer's config: parameter groups, rates by step, gradient clipping."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from handmim.utils.arguments import below_one, one_of
from handmim.utils.run import precision_in_force

NO_DECAY_SUFFIXES = ("pos_embed", "cls_token", "mask_token")
FORMS = {"fused", "foreach", "differentiable", "capturable"}  # of torch's optimizers


@dataclass(frozen=True)
class Schedule:
    """A function of the step: linearly from `warmup_start` to `start`, then from there to `end`."""

    start: float
    end: float | None = None  # value at the last step; None keeps `start`
    shape: str = "cosine"  # half a period of it, or "linear"
    warmup_fraction: float = 0.0  # share of all steps that warm up
    warmup_steps: int | None = None  # or their number
    warmup_start: float = 0.0

    def __post_init__(self) -> None:
        one_of("schedule shape", self.shape, ("cosine", "linear"))
        below_one(warmup_fraction=self.warmup_fraction)
        if self.warmup_steps is not None and self.warmup_fraction:
            raise ValueError("give warmup_steps or warmup_fraction, not both")

    def __call__(self, step: int, total_steps: int) -> float:
        """Value at step 0 .. total_steps - 1; later steps keep the last value."""
        warmup = self.warmup_steps
        if warmup is None:
            warmup = round(self.warmup_fraction * total_steps)
        if step < warmup:
            return self.warmup_start + (self.start - self.warmup_start) * (step + 1) / warmup
        if self.end is None:
            return self.start
        t = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
        if self.shape == "cosine":
            t = 0.5 * (1.0 - math.cos(math.pi * t))
        return self.start + (self.end - self.start) * t


def as_schedule(value: float | Schedule) -> Schedule:
    """A number as a constant schedule."""
    return value if isinstance(value, Schedule) else Schedule(start=float(value))


def param_groups(module: nn.Module, lr_scales: dict[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters by learning-rate factor and by whether weight decay applies: not to
    biases, norms, positions and special tokens. Raises: ValueError when nothing is trainable."""
    if unknown := sorted(set(lr_scales) - dict(module.named_parameters()).keys()):
        raise ValueError(f"lr_scales names parameters that do not exist: {unknown[:5]}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, param in module.named_parameters():
        if param.requires_grad:
            decays = param.ndim > 1 and not name.endswith(NO_DECAY_SUFFIXES)
            groups.setdefault((lr_scales.get(name, 1.0), decays), []).append(param)
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen")
    return [{"params": groups[s, d], "lr_scale": s, "decays": d} for s, d in sorted(groups)]


def load_optimizer(
    optimizer: Optimizer, saved: dict[str, Any], module: nn.Module, order: Sequence[str]
) -> None:
    """Load an optimizer's state, which goes by position; `order` names the module's entries as
    `saved` has them, which is changed in place. Raises: ValueError for other parameters."""
    position = {name: i for i, name in enumerate(order)}
    names = {param: name for name, param in module.named_parameters()}
    numbers = [len(group["params"]) for group in saved["param_groups"]]
    if numbers != [len(group["params"]) for group in optimizer.param_groups]:
        text = f"the checkpoint's optimizer has groups of {numbers} parameters"
        raise ValueError(f"{text}, this run trains other ones: start a new run from its weights")
    for there, here in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        there |= {form: here[form] for form in FORMS if form in here}  # as this run chooses
        params = here["params"]
        if not all(names.get(param) in position for param in params):  # sharded by a strategy
            continue
        ranked = sorted(range(len(params)), key=lambda i: position[names[params[i]]])
        there["params"] = [index for _, index in sorted(zip(ranked, there["params"], strict=True))]
        for param, index in zip(params, there["params"], strict=True):
            for value in filter(torch.is_tensor, saved["state"].get(index, {}).values()):
                if value.ndim and value.shape != param.shape:
                    text = f"the checkpoint's optimizer holds {tuple(value.shape)} for"
                    raise ValueError(f"{text} {names[param]}, {tuple(param.shape)} is required")
    optimizer.load_state_dict(saved)


@torch.no_grad()
def clip_per_tensor(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Shorten each parameter's gradient to `max_norm`; returns the norm of all before that."""
    grads = [param.grad for param in params if param.grad is not None]
    if not grads:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(grads))
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, factors.unbind())
    return norms.norm()


@dataclass
class OptimizerConfig:
    """How parameters are optimised. Raises ValueError for an unknown `clip_by`."""

    make: Callable[..., Optimizer]  # takes parameter groups and `lr`
    lr: float | Schedule
    weight_decay: float | Schedule = 0.05
    clip_norm: float | None = None  # None leaves gradients alone
    lr_reference_batch: int | None = None  # lr grows linearly with the global batch from this one
    clip_by: str = "global"  # norm of all gradients, or "per_tensor" as in iBOT
    # The optimizer's one-kernel form. None takes it where there is one and gradients come unscaled:
    # a fused step unscales fp16's by itself, which leaves nothing to clip.
    fused: bool | None = None

    def __post_init__(self) -> None:
        one_of("clip_by", self.clip_by, ("global", "per_tensor"))
        self._lr, self._weight_decay = as_schedule(self.lr), as_schedule(self.weight_decay)

    def build(
        self, module: nn.Module, lr_scales: dict[str, float], precision: str = "32-true"
    ) -> Optimizer:
        """Optimizer over all trainable parameters; Fabric's `precision` decides about `fused`."""
        groups = param_groups(module, lr_scales)
        try:
            taken = inspect.signature(self.make).parameters
            # A form that `make` has chosen by itself stays.
            is_open = "fused" in taken and not FORMS & set(getattr(self.make, "keywords", ()))
            fused = is_open and precision != "16-mixed" if self.fused is None else self.fused
            how = {"fused": True} if fused else {}
            return self.make(groups, lr=self._lr.start, **how)
        except (TypeError, ValueError, LookupError) as error:
            raise ValueError(f"the optimizer cannot be made: {error} (optim.make)") from error

    def apply(
        self, optimizer: Optimizer, step: int, total_steps: int, batch_size: int
    ) -> dict[str, float]:
        """Set this step's rates; returns those of groups with factor 1."""
        lr = self._scaled(self._lr(step, total_steps), batch_size)
        decay = self._weight_decay(step, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
            group["weight_decay"] = decay if group["decays"] else 0.0
        return {"schedule/lr": lr, "schedule/weight_decay": decay}

    def _scaled(self, lr: float, batch_size: int) -> float:
        reference = self.lr_reference_batch
        return lr if reference is None else lr * batch_size / reference

    def clip(self, fabric: Fabric, module: nn.Module, optimizer: Optimizer) -> Tensor | None:
        """Clip this step's gradients; returns their global norm before, None without clipping."""
        if self.clip_norm is None:
            return None
        is_global = self.clip_by == "global"
        if is_global or precision_in_force(fabric) == "16-mixed":
            # Only Fabric can unscale; with an infinite limit it shortens nothing.
            most = self.clip_norm if is_global else math.inf
            norm = fabric.clip_gradients(module, optimizer, max_norm=most, error_if_nonfinite=False)
            if is_global:
                return torch.as_tensor(norm)
        params = (p for g in optimizer.param_groups for p in g["params"])
        return clip_per_tensor(params, self.clip_norm)

    def describe(self, batch_size: int) -> str:
        """A line for the log: batch size, peak rate, clipping."""
        peak = self._lr.start
        scaled = self._scaled(peak, batch_size)
        how = f" ({peak:g} x {batch_size}/{self.lr_reference_batch})" if scaled != peak else ""
        clip = f"clip {self.clip_norm} ({self.clip_by})"
        return f"{batch_size}, peak learning rate {scaled:g}{how}, {clip}"
