"""Prototype head of self-distillation: MLP, unit length, weight-normalised linear."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """D -> hidden -> hidden -> bottleneck, L2, then logits against P unit prototypes (DINO, iBOT).

    Logits are linear in the unit bottleneck z: the mean logit of many tokens is `logits` of their
    mean z, so that a centre over all patches costs P logits rather than P for each patch.

    Args:
        dim: width of the tokens.
        num_prototypes, hidden_dim, bottleneck_dim: sizes.
        num_layers: linear layers of the MLP, with GELU between.
        train_gain: learn a gain per prototype (iBOT's ViT-S recipe, `norm_last_layer=false`)
            instead of keeping it at 1 (its ViT-B recipe).
    Raises: ValueError for a size below 1.
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
        sizes = {
            "num_prototypes": num_prototypes,
            "hidden_dim": hidden_dim,
            "bottleneck_dim": bottleneck_dim,
            "num_layers": num_layers,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size} (task.heads.projection.{name})")
        widths = [dim] + [hidden_dim] * (num_layers - 1) + [bottleneck_dim]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.num_prototypes = num_prototypes
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        self.gain = nn.Parameter(torch.ones(num_prototypes), requires_grad=train_gain)
        # DINO truncates at 2.0, which is 100 standard deviations: a normal distribution.
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.prototypes, std=0.02)

    def embed(self, tokens: Tensor) -> Tensor:
        """[..., D] tokens to [..., bottleneck] of unit length, in full precision."""
        return F.normalize(self.mlp(tokens).to(self.prototypes.dtype), dim=-1)

    def logits(self, z: Tensor, freeze_prototypes: bool = False) -> Tensor:
        """[..., bottleneck] to [..., P], in full precision also under autocast: temperatures around
        0.05 magnify what bf16 rounds off.

        Frozen prototypes get a gradient of 0 rather than none: distributed training waits for every
        parameter. `forget_prototype_gradients` then spares them the optimiser.
        """
        with torch.autocast(z.device.type, enabled=False):
            weight = F.normalize(self.prototypes, dim=-1) * self.gain.unsqueeze(-1)
            if freeze_prototypes:
                weight = weight.detach() + 0.0 * weight
            return F.linear(z.to(weight.dtype), weight)

    def forward(self, tokens: Tensor, freeze_prototypes: bool = False) -> Tensor:
        """[..., D] tokens to [..., P] logits in [-gain, gain]."""
        return self.logits(self.embed(tokens), freeze_prototypes)

    def forget_prototype_gradients(self) -> None:
        """For steps in which prototypes are frozen, between backward and the optimiser.

        Without a gradient an optimiser leaves a parameter alone. With one of 0 it would decay it,
        and AdamW would count the step: a mean square that has long been 0 makes the first steps
        after the thaw several times too long.
        """
        self.prototypes.grad = None
        self.gain.grad = None
