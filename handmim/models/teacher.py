"""Moving averages of weights: the EMA teacher, and the average that fine-tuning keeps."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from handmim.utils.arguments import below_one


class EmaTeacher(nn.Module):
    """EMA of a student's modules, always in eval mode; `shared` constants are not copied."""

    def __init__(self, student: nn.ModuleDict, shared: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        copied: nn.ModuleDict = copy.deepcopy(student, {id(module): module for module in shared})
        self.net = copied.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in eval mode: dropout must never reach a target."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.ModuleDict, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student; buffers are copied."""
        mine, theirs = dict(self.net.named_parameters()), dict(student.named_parameters())
        if differing := sorted(mine.keys() ^ theirs.keys()):
            raise ValueError(f"teacher and student differ in {differing[:5]}")
        students: list[Tensor] = [theirs[name] for name in mine]
        torch._foreach_lerp_([*mine.values()], students, 1.0 - momentum)
        buffers = dict(student.named_buffers())
        for name, buffer in self.net.named_buffers():
            if buffer is not buffers[name]:
                buffer.copy_(buffers[name])


@dataclass(frozen=True)
class Averaging:
    """Share of a moving average that stays at every step; with `warmup` at most (1 + n) / (10 +
    n) at step n = 0, 1, ..., so that a short run does not average the weights it began with."""

    decay: float = 0.9998
    warmup: bool = True

    def __post_init__(self) -> None:
        below_one(**{"average decay": self.decay})

    def __call__(self, step: int) -> float:
        """Share of the average that stays at step 0, 1, ..."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


def averaging_of(settings: Mapping[str, Any] | float | None) -> Averaging | None:
    """Settings as a config gives them, or the decay alone; None averages nothing."""
    if settings is None or isinstance(settings, (int, float)):
        return None if settings is None else Averaging(settings)
    known = {f.name for f in fields(Averaging)}
    if unknown := sorted(settings.keys() - known):
        raise ValueError(f"averages have no settings {unknown}, they have {sorted(known)}")
    return Averaging(**settings)
