"""Turning teacher logits into targets without collapse: moving centre, or Sinkhorn-Knopp."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def sinkhorn_knopp(logits: Tensor, temp: float, num_iters: int = 3, *, sync: bool = True) -> Tensor:
    """Soft assignment in which every prototype gets an equal share of the batch (SwAV, DINOv2),
    fp32.

    Args:
        logits: [M, P].
        temp: softmax temperature.
        num_iters: row and column normalisations.
        sync: the rows of all ranks count together; every rank has to call then.
    Returns: [M, P], rows sum to 1.
    """
    scaled = logits.float() / temp
    top = scaled.amax() if scaled.numel() else scaled.new_zeros(())
    num_rows = scaled.new_tensor(float(len(scaled)))
    sync = sync and dist.is_available() and dist.is_initialized()
    if sync:
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
        dist.all_reduce(num_rows)
    q = (scaled - top).exp()  # [M, P]
    for _ in range(num_iters):
        column = q.sum(dim=0)
        if sync:
            dist.all_reduce(column)
        q = q / column.clamp(min=1e-12) / q.shape[1]
        q = q / q.sum(dim=1, keepdim=True).clamp(min=1e-12) / num_rows.clamp(min=1.0)
    return q * num_rows


class Centering(nn.Module):
    """Teacher probabilities softmax((logits - centre) / temp); the centre follows the mean logit.

    Scoring changes nothing: the centre moves only in `update`, which the task calls after scoring.

    Args:
        num_prototypes: P.
        momentum: of the centre.
    """

    centre: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(num_prototypes))

    def forward(self, logits: Tensor, temp: float) -> Tensor:
        """[M, P] logits to [M, P] probabilities, fp32."""
        return ((logits.float() - self.centre) / temp).softmax(dim=-1)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move the centre towards the mean over rows, of all ranks."""
        total = torch.cat(
            [logits.float().sum(dim=0), logits.new_tensor([float(len(logits))]).float()]
        )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        seen = total[-1] > 0  # a batch without masked patches says nothing
        self.centre.lerp_(total[:-1] / total[-1].clamp(min=1.0), (1.0 - self.momentum) * seen)


class Sinkhorn(nn.Module):
    """Stateless alternative to `Centering` with the same calls.

    Args:
        num_prototypes: P, unused but part of the common constructor.
        num_iters: Sinkhorn-Knopp iterations.
    """

    def __init__(self, num_prototypes: int, num_iters: int = 3) -> None:
        super().__init__()
        self.num_prototypes, self.num_iters = num_prototypes, num_iters

    def forward(self, logits: Tensor, temp: float) -> Tensor:
        """[M, P] logits to [M, P] probabilities, fp32; in eval mode one rank may call alone."""
        return sinkhorn_knopp(logits, temp, self.num_iters, sync=self.training)

    def update(self, logits: Tensor) -> None:
        """Nothing to follow."""
