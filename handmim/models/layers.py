"""Small layers that several parts share."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from handmim.utils.arguments import at_least
from handmim.utils.ranks import is_spread_out, sum_over_ranks


class _OverRanks(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes; torch's own runs on GPUs alone."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same."""
        if not (self.training and is_spread_out()):
            return super().forward(x)
        self._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.float().transpose(0, 1).flatten(1)  # [C, n]
            own = rows.new_full((1,), rows.shape[1])
            total = sum_over_ranks(torch.cat([rows.sum(dim=1), own]))
            num, mean = total[-1], total[:-1] / total[-1]
            centred = rows - mean[:, None]
            var = sum_over_ranks(centred.square().sum(dim=1)) / num
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                unbiased = var * num / (num - 1).clamp(min=1)
                self.running_var.lerp_(unbiased, self.momentum)
            y = centred * (var + self.eps).rsqrt()[:, None]
            if self.affine:
                y = y * self.weight[:, None] + self.bias[:, None]
        shape = x.shape[1], x.shape[0], *x.shape[2:]
        return y.view(shape).transpose(0, 1).to(x.dtype)


class BatchNorm1d(_OverRanks, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over all processes."""


class BatchNorm2d(_OverRanks, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over all processes."""


class BatchNormMlp(nn.Sequential):
    """Hidden layers with batch norm, over all rows of all processes, and ReLU, a linear output."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, num_hidden: int) -> None:
        at_least(1, hidden_dim=hidden_dim, out_dim=out_dim)
        at_least(0, num_hidden=num_hidden)
        layers: list[nn.Module] = []
        for _ in range(num_hidden):
            layers += [nn.Linear(dim, hidden_dim), BatchNorm1d(hidden_dim), nn.ReLU()]
            dim = hidden_dim
        super().__init__(*layers, nn.Linear(dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., E]."""
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def mlp(dim_in: int, hidden_dim: int, dim_out: int, num_hidden: int) -> nn.Sequential:
    """LayerNorm, hidden layers with GELU, a linear output; no hidden layer makes it linear."""
    linears = [nn.Linear(*dims) for dims in pairwise([dim_in, *[hidden_dim] * num_hidden, dim_out])]
    for linear in linears:
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    hidden = [layer for linear in linears[:-1] for layer in (linear, nn.GELU())]
    return nn.Sequential(nn.LayerNorm(dim_in), *hidden, linears[-1])
