"""MANO parameters from one vector: by iterative regression (HMR, Kanazawa et al. 2018, arXiv
1712.06584), or by a plain MLP, the baseline of heads that refine."""

from torch import Tensor, nn

from handmim.hand.model import HandLayer
from handmim.models.heads.hand_head import (
    HandHead,
    StateUpdate,
    feature_dim,
    small_linear,
    token_features,
    token_layers,
)
from handmim.types import HandState, Tokens
from handmim.utils.arguments import at_least


class IterativeHead(HandHead):
    """Refine by the same features and the same update; detach=False, as in HMR, lets later steps
    train earlier ones."""

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
        super().__init__(dim, hand, camera, scale0_per_m, standardise_cls)
        self.features, self.num_steps, self.detach = features, num_steps, detach
        self.norm = nn.LayerNorm(width)
        self.update = StateUpdate(width, self.state_dim, hidden_dim, dropout, activation)

    def read(self, tokens: Tokens) -> Tensor:
        """[B, C] normalised features."""
        return self.norm(token_features(self.cls_token(tokens), tokens.patches, self.features))

    def updates(self, step: int, read: Tensor, state: Tensor, hand: HandState) -> list[Tensor]:
        """[B, S] of the one update."""
        return [self.update(read, state)]


class PlainHead(HandHead):
    """Token features to one update of the mean hand, which the network does not read."""

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
        super().__init__(dim, hand, camera, scale0_per_m, standardise_cls)
        self.features = features
        self.body = token_layers(width, hidden_dim, num_hidden, dropout)
        self.out = small_linear(hidden_dim if num_hidden else width, self.state_dim)

    def read(self, tokens: Tokens) -> Tensor:
        """[B, C] features."""
        return token_features(self.cls_token(tokens), tokens.patches, self.features)

    def updates(self, step: int, read: Tensor, state: Tensor, hand: HandState) -> list[Tensor]:
        """[B, S] from the features alone."""
        return [self.out(self.body(read))]
