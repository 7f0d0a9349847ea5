"""Iterative regression of MANO parameters from one vector (HMR, Kanazawa et al. 2018, arXiv
1712.06584).

One network, shared by all steps, sees the picture's features and the current state and says what to
add to it. Otherwise than in HMR, two layers with a GELU between them start from normalised tokens
instead of pooled convolutions, and every estimate may be supervised.
"""

from torch import Tensor, nn

from handmim.hand.model import HandLayer
from handmim.models.heads.hand_head import HandHead, StateUpdate
from handmim.models.heads.token_features import feature_dim, token_features
from handmim.types import HandOutputs, Intrinsics, Tokens


class IterativeHead(HandHead):
    """Refine MANO parameters by looking at the same features again.

    Args:
        dim, hand, camera, scale0_per_m, standardise_cls: see `HandHead`.
        features: "cls" looks at the class token, "cls_patch" at it and the mean patch token.
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
        if num_steps < 1:
            raise ValueError(f"num_steps must be >= 1, got {num_steps} (head.num_steps)")
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
        seen: Tensor = self.norm(
            token_features(self.seen_cls(tokens), tokens.patches, self.features)
        )
        state, mean = self.start(len(seen), intrinsics)
        steps = [mean]
        for _ in range(self.num_steps):
            before = state.detach() if self.detach else state
            state = before + self.update(seen, before)
            steps.append(self.decode(state, intrinsics))
        return HandOutputs(tuple(steps))
