"""The EMA teacher and its targets: a moving centre, or Sinkhorn-Knopp; averages of weights."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from handmim.utils.arguments import at_least, below_one, one_of, shares
from handmim.utils.ranks import is_spread_out

OVER = ("masked", "all")


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


def sinkhorn_knopp(logits: Tensor, temp: float, num_iters: int = 3, *, sync: bool = True) -> Tensor:
    """Soft assignment in which every prototype gets an equal share of the batch (SwAV, DINOv2):
    [M, P] in full precision to [M, P], rows sum to 1, normalised in logarithms. With `sync` the
    rows of all processes count together, which all have to call."""
    log_q = logits / temp
    sync = sync and is_spread_out()
    for _ in range(num_iters):
        top = log_q.amax(dim=0) if len(log_q) else log_q.new_full(log_q.shape[1:], -torch.inf)
        if sync:
            dist.all_reduce(top, op=dist.ReduceOp.MAX)
        total = (log_q - top).exp().sum(dim=0)
        if sync:
            dist.all_reduce(total)
        log_q = (log_q - (top + total.log())).log_softmax(dim=1)
    return log_q.exp()


class Centering(nn.Module):
    """Teacher probabilities softmax((logits - centre) / temp), as in DINO and iBOT.

    `follow` only adds to a sum; the centre moves once a step, in `move`. over: the patches whose
    mean logit is followed, "masked" (DINOv2) or "all" (iBOT)."""

    centre: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9, over: str = "masked") -> None:
        super().__init__()
        shares(momentum=momentum)
        one_of("over", over, OVER)
        self.momentum, self.over = momentum, over
        self.register_buffer("centre", torch.zeros(num_prototypes))
        # Sum of logits since the centre last moved, then their number. No buffer: distributed
        # training would overwrite it with the first process's.
        self._pending: Tensor | None = None

    def forward(self, logits: Tensor, temp: float) -> Tensor:
        """[M, P] logits, in full precision, to [M, P] probabilities."""
        return (logits - self.centre).div_(temp).softmax(dim=-1)

    @torch.no_grad()
    def follow(self, mean_logits: Tensor, count: int) -> None:
        """Add `count` tokens of this process with their [P] mean."""
        if count:
            own = mean_logits.to(self.centre.dtype) * count
            total = torch.cat([own, own.new_tensor([float(count)])])
            self._pending = total if self._pending is None else self._pending + total

    def forget_step(self) -> None:
        """Drop the sum of a step that is refused."""
        self._pending = None

    @torch.no_grad()
    def move(self) -> None:
        """Move the centre towards the mean logit of the tokens of all processes, which all call."""
        total, self._pending = self._pending, None
        if is_spread_out():
            total = self.centre.new_zeros(len(self.centre) + 1) if total is None else total
            dist.all_reduce(total)
        if total is not None:
            seen = (total[-1] > 0).to(total.dtype)
            self.centre.lerp_(total[:-1] / total[-1].clamp(min=1.0), (1.0 - self.momentum) * seen)


class Sinkhorn(nn.Module):
    """Stateless alternative to `Centering` by Sinkhorn-Knopp, with the same constructor."""

    over = "masked"

    def __init__(self, num_prototypes: int, num_iters: int = 3) -> None:
        super().__init__()
        at_least(1, num_iters=num_iters)
        self.num_iters = num_iters

    def forward(self, logits: Tensor, temp: float) -> Tensor:
        """[M, P] logits to [M, P] probabilities; in eval mode one process may call alone."""
        return sinkhorn_knopp(logits, temp, self.num_iters, sync=self.training)

    def follow(self, mean_logits: Tensor, count: int) -> None:
        """Nothing to follow."""
