"""Batch statistics and negatives over all training processes. Every process has to call."""

import torch
import torch.distributed as dist
from torch import Tensor


def _is_spread_out() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of one tensor per process, without gradient; the tensor itself in a single process."""
    value = value.detach()
    if not _is_spread_out():
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes in rank order, and the place of this process's first one.

    Own rows keep their gradient. Those of other processes are constants here: each process trains
    on its own anchors, as one with a memory of negatives does.

    Args:
        rows: [B, ...], of one shape in all processes.
    Returns: [B * processes, ...].
    """
    if not _is_spread_out():
        return rows, 0
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    rank = dist.get_rank()
    parts[rank] = rows
    return torch.cat(parts), rank * len(rows)
