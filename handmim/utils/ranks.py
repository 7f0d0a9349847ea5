"""What one process would compute of the whole batch. Functions return their argument unchanged in
a single process; else every process has to call them. Training averages gradients over processes,
which is the gradient of the whole."""

import copy
import pickle
import threading
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_spread_out() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def any_of_ranks(flag: bool, group: Any) -> bool:
    """Whether the flag is up on any process of a group."""
    up = torch.tensor(float(flag))
    dist.all_reduce(up, dist.ReduceOp.MAX, group=group)
    return bool(up)


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


def from_first_rank(value: Tensor) -> Tensor:
    """The first process's tensor, in place of one of equal shape."""
    if is_spread_out():
        dist.broadcast(value, 0)
    return value


def own_share(rows: Tensor) -> Tensor:
    """Of rows that all processes have, those that this one counts: each row counts once."""
    return rows[dist.get_rank() :: dist.get_world_size()] if is_spread_out() else rows


def count_over_ranks(count: Tensor, *, sync: bool = True) -> Tensor:
    """The divisor of a sum over counted items, so that the mean over processes is that over all
    items: the mean of the [] integer counts, one item of all at least; `sync=False`: of this
    process."""
    if not (sync and is_spread_out()):
        return count.clamp(min=1)
    return mean_over_ranks(count.float()).clamp(min=1.0 / dist.get_world_size())


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """Rows [B, ...] of all processes in rank order, [B * processes, ...] with their gradients, and
    the index of this process's first one."""
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


def portable(error: Exception) -> Exception:
    """The error, or one of the same words where it cannot be sent to another process."""
    try:
        ForkingPickler.dumps(error)
        if type(copy.copy(error)) is type(error):  # it is made again from its arguments
            return error
    except (TypeError, ValueError, AttributeError, pickle.PicklingError):
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def words_of_ranks(words: str, wait_s: float) -> dict[int, str | None]:
    """What the other processes say, by rank, when all of them call this because one stands still.
    After `wait_s`, a stopped or dead process says None. Empty in a single process."""
    if not is_spread_out():
        return {}
    own, left = dist.get_rank(), threading.Event()
    said: dict[int, str | None] = {r: None for r in range(dist.get_world_size()) if r != own}

    def exchange() -> None:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"handmim/stalled/{own}", words)
        while not left.is_set() and None in said.values():
            for rank in [rank for rank, text in said.items() if text is None]:
                if store.check([key := f"handmim/stalled/{rank}"]):
                    said[rank] = store.get(key).decode()
            left.wait(wait_s / 50)

    # The process that holds the store may be the silent one: then nobody answers.
    exchanging = threading.Thread(target=exchange, daemon=True)
    exchanging.start()
    exchanging.join(wait_s)
    left.set()
    return said
