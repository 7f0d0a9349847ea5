"""Optimizer config: parameter groups, learning-rate and weight-decay schedules, gradient
clipping."""

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from handmim.engine.schedule import Schedule, as_schedule
from handmim.utils.run import precision_in_force

log = logging.getLogger(__name__)

NO_DECAY_SUFFIXES = ("pos_embed", "cls_token", "mask_token")
CLIPS = ("global", "per_tensor")
FORMS = {"fused", "foreach", "differentiable", "capturable"}  # of torch's optimizers


def param_groups(module: nn.Module, lr_scales: dict[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters grouped by learning-rate factor and by whether weight decay applies.

    Biases, norms and other 1-D parameters, positions and special tokens do not decay.

    Raises: ValueError when nothing is trainable or `lr_scales` names no parameter.
    """
    names = {name for name, _ in module.named_parameters()}
    unknown = sorted(set(lr_scales) - names)
    if unknown:
        raise ValueError(f"lr_scales names parameters that do not exist: {unknown[:5]}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, param in module.named_parameters():
        if param.requires_grad:
            decays = param.ndim > 1 and not name.endswith(NO_DECAY_SUFFIXES)
            groups.setdefault((lr_scales.get(name, 1.0), decays), []).append(param)
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen")
    return [
        {"params": params, "lr_scale": scale, "decays": decays}
        for (scale, decays), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def load_optimizer(
    optimizer: Optimizer, saved: dict[str, Any], module: nn.Module, order: Sequence[str]
) -> None:
    """Load an optimizer's state, which goes by position, for parameters in another order.

    Args:
        optimizer: over parameters of the module, in groups of `param_groups`.
        saved: its `state_dict`, changed in place.
        module: names the parameters.
        order: names of entries of the module in the order in which `saved` has them.
    Raises: ValueError for a state of other parameters.
    """
    position = {name: i for i, name in enumerate(order)}
    names = {param: name for name, param in module.named_parameters()}
    numbers = [len(group["params"]) for group in saved["param_groups"]]
    if numbers != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError(
            f"the checkpoint's optimizer has groups of {numbers} parameters, this run trains other "
            "ones: start a new run from its weights"
        )
    for there, here in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        params = here["params"]
        if not all(names.get(param) in position for param in params):  # sharded by a strategy
            continue
        ranked = sorted(range(len(params)), key=lambda i: position[names[params[i]]])
        there["params"] = [index for _, index in sorted(zip(ranked, there["params"], strict=True))]
        for param, index in zip(params, there["params"], strict=True):
            for value in saved["state"].get(index, {}).values():
                if torch.is_tensor(value) and value.ndim and value.shape != param.shape:
                    raise ValueError(
                        f"the checkpoint's optimizer holds {tuple(value.shape)} for "
                        f"{names[param]}, {tuple(param.shape)} is required"
                    )
    optimizer.load_state_dict(saved)


def scaled_lr(lr: float, batch_size: int, reference_batch: int | None) -> float:
    """Linear scaling rule: lr * batch / reference; unchanged without a reference."""
    return lr if reference_batch is None else lr * batch_size / reference_batch


@torch.no_grad()
def clip_per_tensor(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Shorten the gradient of every parameter that is longer than `max_norm`, each for itself.

    Returns: the norm of all together before that.
    """
    grads = [param.grad for param in params if param.grad is not None]
    if not grads:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(grads))
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, factors.unbind())
    return norms.norm()


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are optimised.

    Args:
        make: optimizer constructor that takes parameter groups and `lr`.
        lr: learning rate, at `lr_reference_batch` samples per step if that is given.
        weight_decay: constant or schedule.
        clip_norm: largest gradient norm; None leaves gradients alone.
        lr_reference_batch: scale lr linearly with the global batch relative to this.
        clip_by: the norm is that of all gradients together ("global") or of each parameter tensor
            for itself ("per_tensor", as in iBOT).
        fused: the optimizer's one-kernel form, the same up to rounding; None takes it wherever
            there is one and gradients come unscaled (a fused step unscales fp16's by itself, which
            leaves nothing to clip).
    Raises: ValueError for an unknown `clip_by`.
    """

    make: Callable[..., Optimizer]
    lr: float | Schedule
    weight_decay: float | Schedule = 0.05
    clip_norm: float | None = None
    lr_reference_batch: int | None = None
    clip_by: str = "global"
    fused: bool | None = None
    _lr: Schedule = field(init=False, repr=False)
    _weight_decay: Schedule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.clip_by not in CLIPS:
            raise ValueError(f"clip_by must be one of {CLIPS}, got {self.clip_by!r}")
        object.__setattr__(self, "_lr", as_schedule(self.lr))
        object.__setattr__(self, "_weight_decay", as_schedule(self.weight_decay))

    def build(
        self, module: nn.Module, lr_scales: dict[str, float], precision: str = "32-true"
    ) -> Optimizer:
        """Optimizer over all trainable parameters; rates are set by `apply` before every step.

        Args:
            module: whose parameters.
            lr_scales: factors on the learning rate by parameter name; those left out count 1.
            precision: Fabric's, which decides about `fused`.
        Raises: ValueError for arguments that the optimizer does not take.
        """
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
        """Set this step's rates.

        Returns: `schedule/lr` (of groups with factor 1) and `schedule/weight_decay`.
        """
        lr = scaled_lr(self._lr(step, total_steps), batch_size, self.lr_reference_batch)
        decay = self._weight_decay(step, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
            group["weight_decay"] = decay if group["decays"] else 0.0
        return {"schedule/lr": lr, "schedule/weight_decay": decay}

    def clip(self, fabric: Fabric, module: nn.Module, optimizer: Optimizer) -> Tensor | None:
        """Clip this step's gradients.

        Returns: their global norm before clipping; None without clipping.
        """
        if self.clip_norm is None:
            return None
        if self.clip_by == "global":
            norm = fabric.clip_gradients(
                module, optimizer, max_norm=self.clip_norm, error_if_nonfinite=False
            )
            return torch.as_tensor(norm)
        if precision_in_force(fabric) == "16-mixed":
            # Only Fabric can unscale; with an infinite limit it shortens nothing.
            fabric.clip_gradients(
                module, optimizer, max_norm=float("inf"), error_if_nonfinite=False
            )
        return clip_per_tensor(
            (p for g in optimizer.param_groups for p in g["params"]), self.clip_norm
        )

    def describe(self, batch_size: int) -> str:
        """One line for the log, with both rates when they differ."""
        peak = self._lr.start
        scaled = scaled_lr(peak, batch_size, self.lr_reference_batch)
        how = f" ({peak:g} x {batch_size}/{self.lr_reference_batch})" if scaled != peak else ""
        return f"peak learning rate {scaled:g}{how}, clip {self.clip_norm} ({self.clip_by})"
