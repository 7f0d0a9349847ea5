"""MANO parameters from queries that attend to all tokens (as HaMeR, Pavlakos et al. 2024, arXiv
2312.05251, but to the class token too, and from the current state)."""

from functools import partial

import torch
from torch import Tensor, nn

from handmim.hand.model import HandLayer
from handmim.models.heads.hand_head import HandHead, small_linear
from handmim.types import HandState, Tokens
from handmim.utils.arguments import at_least


class DecoderLayer(nn.Module):
    """Self-attention of several queries, cross-attention to tokens, an MLP; pre-norm."""

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, dropout: float, *, among_queries: bool
    ) -> None:
        super().__init__()
        mlp_width = round(width * mlp_ratio)
        attention = partial(nn.MultiheadAttention, width, num_heads, dropout, batch_first=True)
        self.own_norm = nn.LayerNorm(width) if among_queries else None
        self.own = attention() if among_queries else None
        self.cross_norm = nn.LayerNorm(width)
        self.cross = attention()
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, mlp_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """[B, Q, W] queries and [B, N, W] tokens to [B, Q, W]."""
        if self.own is not None and self.own_norm is not None:
            x = self.own_norm(queries)
            queries = queries + self.dropout(self.own(x, x, x, need_weights=False)[0])
        x = self.cross_norm(queries)
        queries = queries + self.dropout(self.cross(x, context, context, need_weights=False)[0])
        return queries + self.dropout(self.mlp(queries))


class DecoderHead(HandHead):
    """Refine MANO parameters by `num_queries` learned queries with the state added to each; the
    update is read off all of them together.

    `num_steps`: times that the whole decoder is applied, 1 in HaMeR. `supervise_layers` reads an
    estimate off after every layer, with one readout for all."""

    def __init__(
        self,
        dim: int,
        hand: HandLayer,
        *,
        camera: str = "weak",
        scale0_per_m: float = 8.0,
        num_queries: int = 1,
        num_layers: int = 6,
        width: int = 512,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        num_steps: int = 1,
        supervise_layers: bool = False,
        standardise_cls: bool = False,
    ) -> None:
        at_least(1, num_queries=num_queries, num_layers=num_layers, num_steps=num_steps)
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
        super().__init__(dim, hand, camera, scale0_per_m, standardise_cls)
        self.num_steps, self.supervise_layers = num_steps, supervise_layers
        self.queries = nn.Parameter(torch.randn(num_queries, width) * 0.02)
        self.embed_state = nn.Linear(self.state_dim, width)
        self.embed_tokens = nn.Sequential(nn.Linear(dim, width), nn.LayerNorm(width))
        self.layers = nn.ModuleList(
            DecoderLayer(width, num_heads, mlp_ratio, dropout, among_queries=num_queries > 1)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = small_linear(num_queries * width, self.state_dim)

    def read(self, tokens: Tokens) -> Tensor:
        """[B, 1 + N, W] embedded tokens."""
        every = torch.cat([self.cls_token(tokens)[:, None], tokens.patches], dim=1)
        return self.embed_tokens(every)

    def updates(self, step: int, read: Tensor, state: Tensor, hand: HandState) -> list[Tensor]:
        """[B, S] after every layer, or the last."""
        after = [self.queries + self.embed_state(state)[:, None]]
        for layer in self.layers:
            after.append(layer(after[-1], read))
        ends = after[1:] if self.supervise_layers else after[-1:]
        return [self.out(self.norm(x).flatten(1)) for x in ends]
