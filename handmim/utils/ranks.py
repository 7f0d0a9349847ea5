"""What one process would compute of the whole batch, over all training processes.

Every function returns its argument unchanged in a single process, and has to be called by every
process otherwise. Distributed training averages gradients over processes: a loss that each of them
takes of its own rows, or all of them of the same gathered rows, then has the gradient of the whole.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_spread_out() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Sum(torch.autograd.Function):
    """Sum over processes; so is its gradient, since each sum is used by all of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(None, grad)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = _Sum.forward(None, grad)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of one tensor per process, with its gradient."""
    total: Tensor = _Sum.apply(value) if is_spread_out() else value  # type: ignore[no-untyped-call]
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of one tensor per process, with its gradient where the tensor has one."""
    return sum_over_ranks(value) / dist.get_world_size() if is_spread_out() else value


def count_over_ranks(count: Tensor, *, sync: bool = True) -> Tensor:
    """What a sum over counted items is divided by so that the mean over processes is the mean over
    the items of all: the mean count, at least one item of all.

    Args:
        count: [] integer of this process.
        sync: False takes this process alone.
    """
    if not (sync and is_spread_out()):
        return count.clamp(min=1)
    return mean_over_ranks(count.float()).clamp(min=1.0 / dist.get_world_size())


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes in rank order with their gradients, and the index of this process's
    first one.

    Args:
        rows: [B, ...], of one shape in all processes.
    Returns: [B * processes, ...].
    """
    if not is_spread_out():
        return rows, 0
    every: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return every, dist.get_rank() * len(rows)


def objects_of_ranks(item: Any) -> list[Any]:
    """One plain object of each process in rank order; it is pickled."""
    if not is_spread_out():
        return [item]
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items
