"""Prototype head of patch self-distillation: MLP, normalise, weight-normalised linear."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """D -> hidden -> hidden -> bottleneck, L2, then cosine logits against P prototypes (DINO,
    iBOT).

    Args:
        dim: width of the tokens.
        num_prototypes, hidden_dim, bottleneck_dim: sizes.
        num_layers: linear layers of the MLP.
        train_gain: learn a gain per prototype (ViT-S recipe) instead of keeping it at 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_prototypes: int = 8192,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        train_gain: bool = True,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(
                f"num_layers must be >= 1, got {num_layers} (configs/loss/patch_distill.yaml)"
            )
        widths = [dim] + [hidden_dim] * (num_layers - 1) + [bottleneck_dim]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.num_prototypes = num_prototypes
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        self.gain = nn.Parameter(torch.ones(num_prototypes), requires_grad=train_gain)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, tokens: Tensor, freeze_prototypes: bool = False) -> Tensor:
        """[..., D] tokens to [..., P] logits in [-gain, gain].

        Frozen prototypes get a gradient of 0 rather than none: distributed training waits for every
        parameter. Weight decay still shrinks them, which their normalisation undoes.
        """
        z = F.normalize(self.mlp(tokens), dim=-1)
        weight = F.normalize(self.prototypes, dim=-1) * self.gain.unsqueeze(-1)
        if freeze_prototypes:
            weight = weight.detach() + 0.0 * weight
        return F.linear(z, weight)
