"""What a device can do at best: its rate of matrix products, and the operations of a piece of
work."""

import statistics
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from handmim.utils.timer import work_clock

SIDES = {"cpu": 1024, "cuda": 8192}


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, rounds: int = 9) -> float:
    """Operations per second of square matrix products, median of rounds; a multiply-add counts
    two."""
    side = SIDES.get(device.type, 4096)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    clock = work_clock(device)
    rates = []
    for _ in range(rounds + 2):
        began = clock()
        a @ b
        rates.append(2 * side**3 / max(clock() - began, 1e-9))
    return statistics.median(rates[2:])


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in one call; what is
    compiled runs uncompiled, for a compiled kernel does not tell."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
