"""MANO parameters straight from one vector, by a plain MLP: the yardstick of heads that refine."""

from torch import Tensor, nn

from handmim.hand.model import HandLayer
from handmim.models.heads.hand_head import HandHead, small_linear
from handmim.models.heads.token_features import feature_dim, token_features
from handmim.types import HandOutputs, Intrinsics, Tokens


class PlainHead(HandHead):
    """Token features to one update of the mean hand, which the network does not see.

    Args:
        dim, hand, camera, scale0_per_m, standardise_cls: see `HandHead`.
        features: "cls" looks at the class token, "cls_patch" at it and the mean patch token.
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
        if num_hidden < 0:
            raise ValueError(f"num_hidden must be >= 0, got {num_hidden} (head.num_hidden)")
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
        """Tokens of one batch to the mean hand and the answer."""
        seen = token_features(self.seen_cls(tokens), tokens.patches, self.features)
        state, mean = self.start(len(seen), intrinsics)
        update: Tensor = self.out(self.body(seen))
        return HandOutputs((mean, self.decode(state + update, intrinsics)))
