"""MANO parameters from one vector: by iterative regression (HMR, Kanazawa et al. 2018, arXiv
1712.06584), or by a plain MLP, the baseline of heads that refine.

In iterative regression one network, shared by all steps, reads the image's features and the current
state and predicts an update. Otherwise than in HMR, two layers with a GELU between them start from
normalised tokens instead of pooled convolutions, and every estimate may be supervised.
"""

from torch import Tensor, nn

from handmim.hand.model import HandLayer
from handmim.models.heads.hand_head import (
    HandHead,
    StateUpdate,
    feature_dim,
    small_linear,
    token_features,
)
from handmim.types import HandOutputs, Intrinsics, Tokens
from handmim.utils.arguments import at_least


class IterativeHead(HandHead):
    """Refine MANO parameters by the same features, read again at every step.

    Args:
        dim, hand, camera, scale0_per_m, standardise_cls: see `HandHead`.
        features: see `token_features`.
        num_steps: how often the one update is applied.
        hidden_dim, dropout, activation: of the update, see `StateUpdate`.
        detach: states are handed on without their gradient; False, as in HMR, lets later steps
            train earlier ones.
    """

    def __init__(
        self,
        dim: int,
        hand: HandLayer,
        *,
        camera: str = "weak",
        scale0_per_m: float = 8.0,
        features: str = "cls_patch",
        num_steps: int = 3,
        hidden_dim: int = 1024,
        dropout: float = 0.1,
        activation: str = "gelu",
        standardise_cls: bool = False,
        detach: bool = False,
    ) -> None:
        at_least(1, num_steps=num_steps)
        width = feature_dim(features, dim)
        super().__init__(
            dim,
            hand,
            camera=camera,
            scale0_per_m=scale0_per_m,
            standardise_cls=standardise_cls,
        )
        self.features, self.num_steps, self.detach = features, num_steps, detach
        self.norm = nn.LayerNorm(width)
        self.update = StateUpdate(width, self.state_dim, hidden_dim, dropout, activation)

    def forward(self, tokens: Tokens, intrinsics: Intrinsics | None = None) -> HandOutputs:
        """Tokens of one batch to the mean hand and `num_steps` refinements of it."""
        vector: Tensor = self.norm(
            token_features(self.cls_token(tokens), tokens.patches, self.features)
        )
        state, mean = self.start(len(vector), intrinsics)
        steps = [mean]
        for _ in range(self.num_steps):
            before = state.detach() if self.detach else state
            state = before + self.update(vector, before)
            steps.append(self.decode(state, intrinsics))
        return HandOutputs(tuple(steps))


class PlainHead(HandHead):
    """Token features to one update of the mean hand, which the network does not read.

    Args:
        dim, hand, camera, scale0_per_m, standardise_cls: see `HandHead`.
        features: see `token_features`.
        hidden_dim: width of the hidden layers.
        num_hidden: hidden layers with a GELU; 0 leaves the head linear.
        dropout: after each of them, or before the one layer of a linear head.
    """

    def __init__(
        self,
        dim: int,
        hand: HandLayer,
        *,
        camera: str = "weak",
        scale0_per_m: float = 8.0,
        features: str = "cls_patch",
        hidden_dim: int = 1024,
        num_hidden: int = 2,
        dropout: float = 0.1,
        standardise_cls: bool = False,
    ) -> None:
        at_least(0, num_hidden=num_hidden)
        width = feature_dim(features, dim)
        super().__init__(
            dim,
            hand,
            camera=camera,
            scale0_per_m=scale0_per_m,
            standardise_cls=standardise_cls,
        )
        self.features = features
        layers: list[nn.Module] = [nn.LayerNorm(width)]
        for _ in range(num_hidden):
            layers += [nn.Linear(width, hidden_dim), nn.GELU(), nn.Dropout(dropout)]
            width = hidden_dim
        if not num_hidden:
            layers.append(nn.Dropout(dropout))
        self.body = nn.Sequential(*layers)
        self.out = small_linear(width, self.state_dim)

    def forward(self, tokens: Tokens, intrinsics: Intrinsics | None = None) -> HandOutputs:
        """Tokens of one batch to the mean hand and the estimate."""
        vector = token_features(self.cls_token(tokens), tokens.patches, self.features)
        state, mean = self.start(len(vector), intrinsics)
        update: Tensor = self.out(self.body(vector))
        return HandOutputs((mean, self.decode(state + update, intrinsics)))
