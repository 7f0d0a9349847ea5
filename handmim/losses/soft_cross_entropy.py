"""Cross-entropy against whole distributions, in one buffer: the gradient is made while the loss is.

With thousands of prototypes the logits are the largest tensors of a step. Autograd would keep and
make several of their size; here one is written once and read once more on the way back.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, temp: float) -> Tensor:
        scaled = logits / temp
        log_sum = scaled.logsumexp(dim=-1, keepdim=True)
        told = torch.linalg.vecdot(probs, scaled)
        mass = probs.sum(dim=-1, keepdim=True)
        if ctx.needs_input_grad[0]:
            # d/dlogits = (mass softmax(scaled) - probs) / temp
            by_logits = scaled.sub_(log_sum).exp_().mul_(mass).sub_(probs).div_(temp)
            ctx.save_for_backward(by_logits)
        return (mass * log_sum).squeeze(-1) - told

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (by_logits,) = ctx.saved_tensors
        return by_logits * grad.unsqueeze(-1), None, None


def soft_cross_entropy(logits: Tensor, probs: Tensor, temp: float) -> Tensor:
    """- sum_p probs log softmax(logits / temp).

    Args:
        logits: [..., P] in full precision.
        probs: [..., P] non-negative targets without a gradient; their sums need not be 1.
        temp: of the softmax.
    Returns: [...]; differentiable in the logits, once.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return _SoftCrossEntropy.apply(logits, probs.detach(), temp)  # type: ignore[no-any-return]
