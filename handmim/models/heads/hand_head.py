"""Heads that regress a hand model: state, refinement and projection into the crop, which all share,
and the heads that read one vector or attend to all tokens."""

from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from handmim.geometry.rotation import matrix_to_rot6d, rot6d_to_matrix
from handmim.hand.crop_camera import CropCamera
from handmim.hand.model import HandLayer
from handmim.hand.skeleton import ROOT_JOINT
from handmim.types import HandOutputs, HandState, Intrinsics, Tokens
from handmim.utils.arguments import at_least, one_of

NUM_ROT6D, NUM_CAM = 96, 3
FEATURES = ("cls", "cls_patch")
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "none": nn.Identity}


@dataclass(eq=False, repr=False)
class HandHead(nn.Module):
    """Tokens in, a hand model's parameters out, as a list of refined estimates.

    State: 16 rotations in 6D, betas, camera (log(s / s0), tx, ty), where s0 is `scale0_per_m`.
    Refinement starts at the mean hand of the training labels. `standardise_cls` reads the class
    token relative to its mean and deviation over training images."""

    dim: int
    hand: HandLayer
    _: KW_ONLY
    camera: str = "weak"
    scale0_per_m: float = 8.0
    standardise_cls: bool = False
    mean_rot6d: Tensor = field(init=False)
    mean_cam: Tensor = field(init=False)
    cls_mean: Tensor = field(init=False)
    cls_std: Tensor = field(init=False)
    tapped_blocks: tuple[int, ...] = field(init=False, default=())  # from 1, for `Tokens.taps`
    drawn: frozenset[str] = field(init=False, default=frozenset())  # auxiliary fields of outputs
    num_steps = 1
    detach = False  # hand states on without their gradient
    steps_train_alone = False  # whether a step has weights that its own estimate alone trains

    def __new__(cls, *args: Any, **kwargs: Any) -> "HandHead":
        """A module before its fields are set, one of which is a module."""
        head = super().__new__(cls)
        nn.Module.__init__(head)
        return head

    def __post_init__(self) -> None:
        if self.hand.side != "right":
            text = "heads regress right hands (left ones are mirrored before and after)"
            raise ValueError(f"{text}, got the {self.hand.side} hand {self.hand.name}")
        self.num_betas = self.hand.num_betas
        self.crop_camera = CropCamera(self.camera, self.scale0_per_m)
        self.state_dim = NUM_ROT6D + self.num_betas + NUM_CAM
        # Learned from the training labels, so they belong to the weights.
        self.register_buffer("mean_rot6d", matrix_to_rot6d(self.hand.mean_rotmats.float()))
        self.register_buffer("mean_cam", torch.zeros(NUM_CAM))
        self.register_buffer("cls_mean", torch.zeros(self.dim))
        self.register_buffer("cls_std", torch.ones(self.dim))

    def set_mean_hand(self, rotmats: Tensor, cam: Tensor) -> None:
        """Set where refinement starts: [16, 3, 3] rotations and [3] camera; betas start at 0."""
        self.mean_rot6d.copy_(matrix_to_rot6d(rotmats))
        self.mean_cam.copy_(cam)

    def set_cls_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics that standardise class tokens, [D] each; deviations are >= 1e-2."""
        self.cls_mean.copy_(mean)
        self.cls_std.copy_(std.clamp(min=1e-2))

    def cls_token(self, tokens: Tokens) -> Tensor:
        """[B, D] the class token, standardised where the head does so."""
        cls = tokens.cls
        return (cls - self.cls_mean) / self.cls_std if self.standardise_cls else cls

    def mean_state(self, batch_size: int) -> Tensor:
        """[B, S] the state every refinement starts from."""
        betas = self.mean_cam.new_zeros(self.num_betas)
        start = torch.cat([self.mean_rot6d.flatten(), betas, self.mean_cam])
        return start.expand(batch_size, -1)

    def start(self, batch_size: int, intrinsics: Intrinsics | None) -> tuple[Tensor, HandState]:
        """The mean state of all samples, [B, S], and its hand, which is posed once for all."""
        state = self.mean_state(batch_size)
        return state, self.decode(state[:1], intrinsics, batch_size)

    def decode(
        self, state: Tensor, intrinsics: Intrinsics | None = None, num_same: int | None = None
    ) -> HandState:
        """[B, S] state to rotations, mesh and projections; fp32 whatever the autocast state. One
        state serves `num_same` samples, each with its camera."""
        camera = self.crop_camera
        with torch.autocast(state.device.type, enabled=False):
            rot6d, betas, cam = state.float().split([NUM_ROT6D, self.num_betas, NUM_CAM], dim=1)
            rotmats = rot6d_to_matrix(rot6d.unflatten(1, (16, 6)))
            mesh = self.hand(rotmats, betas)
            root = mesh.joints_m[:, ROOT_JOINT, None]
            hand = [rotmats, betas, cam, mesh.verts_m - root, mesh.joints_m - root]
            if num_same is not None:
                hand = [part.expand(num_same, *part.shape[1:]) for part in hand]
            rotmats, betas, cam, verts, joints = hand
            transl, is_metric = camera.root_translation(cam, intrinsics)
            seen = [camera.project(each, cam, transl, intrinsics) for each in (verts, joints)]
        return HandState(rotmats, betas, cam, verts, joints, seen[0], seen[1], transl, is_metric)

    def read(self, tokens: Tokens) -> Any:
        """What every step reads of the tokens."""
        raise NotImplementedError

    def updates(self, step: int, read: Any, state: Tensor, hand: HandState) -> list[Tensor]:
        """[B, S] changes of a state in step 0, 1, ...; each gives an estimate."""
        raise NotImplementedError

    def drawings(self, read: Any) -> dict[str, Tensor]:
        """Auxiliary fields of the outputs that `drawn` names."""
        return {}

    def forward(self, tokens: Tokens, intrinsics: Intrinsics | None = None) -> HandOutputs:
        """Tokens with `tapped_blocks` to the mean hand and the estimates after it."""
        read = self.read(tokens)
        state, mean = self.start(len(tokens.cls), intrinsics)
        steps = [mean]
        for step in range(self.num_steps):
            before = state.detach() if self.detach else state
            states = [before + update for update in self.updates(step, read, before, steps[-1])]
            steps += [self.decode(each, intrinsics) for each in states]
            state = states[-1]
        return HandOutputs(tuple(steps), **self.drawings(read))


@dataclass(eq=False, repr=False, kw_only=True)
class IterativeHead(HandHead):
    """Refine by the same features and the same update (HMR, Kanazawa et al. 2018, arXiv
    1712.06584); detach=False, as in HMR, lets later steps train earlier ones."""

    features: str = "cls_patch"
    num_steps: int = 3
    hidden_dim: int = 1024
    dropout: float = 0.1
    activation: str = "gelu"
    detach: bool = False

    def __post_init__(self) -> None:
        at_least(1, num_steps=self.num_steps)
        width = feature_dim(self.features, self.dim)
        super().__post_init__()
        self.norm = nn.LayerNorm(width)
        sizes = width, self.state_dim, self.hidden_dim
        self.update = StateUpdate(*sizes, self.dropout, self.activation)

    def read(self, tokens: Tokens) -> Tensor:
        """[B, C] normalised features."""
        return self.norm(token_features(self.cls_token(tokens), tokens.patches, self.features))

    def updates(self, step: int, read: Tensor, state: Tensor, hand: HandState) -> list[Tensor]:
        """[B, S] of the one update."""
        return [self.update(read, state)]


@dataclass(eq=False, repr=False, kw_only=True)
class PlainHead(HandHead):
    """Token features to one update of the mean hand, which the network does not read: the baseline
    of heads that refine."""

    features: str = "cls_patch"
    hidden_dim: int = 1024
    num_hidden: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        at_least(0, num_hidden=self.num_hidden)
        width = feature_dim(self.features, self.dim)
        super().__post_init__()
        self.body = token_layers(width, self.hidden_dim, self.num_hidden, self.dropout)
        self.out = small_linear(self.hidden_dim if self.num_hidden else width, self.state_dim)

    def read(self, tokens: Tokens) -> Tensor:
        """[B, C] features."""
        return token_features(self.cls_token(tokens), tokens.patches, self.features)

    def updates(self, step: int, read: Tensor, state: Tensor, hand: HandState) -> list[Tensor]:
        """[B, S] from the features alone."""
        return [self.out(self.body(read))]


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
        ends = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        between = nn.GELU(), nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.LayerNorm(width), ends[0], *between, ends[1])
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """[B, Q, W] queries and [B, N, W] tokens to [B, Q, W]."""
        if self.own is not None and self.own_norm is not None:
            x = self.own_norm(queries)
            queries = queries + self.dropout(self.own(x, x, x, need_weights=False)[0])
        x = self.cross_norm(queries)
        queries = queries + self.dropout(self.cross(x, context, context, need_weights=False)[0])
        return queries + self.dropout(self.mlp(queries))


@dataclass(eq=False, repr=False, kw_only=True)
class DecoderHead(HandHead):
    """Refine MANO parameters by `num_queries` learned queries with the state added to each, which
    attend to all tokens; the update is read off all of them together (as HaMeR, Pavlakos et al.
    2024, arXiv 2312.05251, but to the class token too, and from the current state).

    `num_steps`: times that the whole decoder is applied, 1 in HaMeR. `supervise_layers` reads an
    estimate off after every layer, with one readout for all."""

    num_queries: int = 1
    num_layers: int = 6
    width: int = 512
    num_heads: int = 8
    mlp_ratio: float = 2.0
    dropout: float = 0.1
    num_steps: int = 1
    supervise_layers: bool = False

    def __post_init__(self) -> None:
        num, width, num_heads = self.num_queries, self.width, self.num_heads
        at_least(1, num_queries=num, num_layers=self.num_layers, num_steps=self.num_steps)
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
        super().__post_init__()
        self.queries = nn.Parameter(torch.randn(num, width) * 0.02)
        self.embed_state = nn.Linear(self.state_dim, width)
        self.embed_tokens = nn.Sequential(nn.Linear(self.dim, width), nn.LayerNorm(width))
        sizes = width, num_heads, self.mlp_ratio, self.dropout
        layers = (DecoderLayer(*sizes, among_queries=num > 1) for _ in range(self.num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.out = small_linear(num * width, self.state_dim)

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


class StateUpdate(nn.Module):
    """Features and state to an additive update, near zero before training."""

    def __init__(
        self, width: int, state_dim: int, hidden_dim: int, dropout: float, activation: str
    ) -> None:
        super().__init__()
        one_of("activation", activation, ACTIVATIONS)
        self.body = nn.Sequential()
        for dim in (width + state_dim, hidden_dim):
            layers = nn.Linear(dim, hidden_dim), ACTIVATIONS[activation](), nn.Dropout(dropout)
            self.body.extend(layers)
        self.out = small_linear(hidden_dim, state_dim)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """[B, C] features and [B, S] state to [B, S] updates."""
        return self.out(self.body(torch.cat([features, state], dim=-1)))


def token_layers(width: int, hidden_dim: int, num_hidden: int, dropout: float) -> nn.Sequential:
    """LayerNorm and hidden layers with GELU and dropout; without one, dropout alone."""
    layers = nn.Sequential(nn.LayerNorm(width))
    for n in range(num_hidden):
        linear = nn.Linear(hidden_dim if n else width, hidden_dim)
        layers.extend([linear, nn.GELU(), nn.Dropout(dropout)])
    return layers if num_hidden else layers.append(nn.Dropout(dropout))


def small_linear(dim: int, state_dim: int) -> nn.Linear:
    """A last layer whose output is near zero before training (Xavier with gain 0.01, as HMR)."""
    layer = nn.Linear(dim, state_dim)
    nn.init.xavier_uniform_(layer.weight, gain=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def feature_dim(features: str, dim: int) -> int:
    """Width of `token_features` for tokens of width `dim`."""
    one_of("features", features, FEATURES)
    return dim * (2 if features == "cls_patch" else 1)


def token_features(cls: Tensor, patches: Tensor, features: str) -> Tensor:
    """[B, D] and [B, N, D] to [B, D], or [B, 2 D] with the mean patch token."""
    return cls if features == "cls" else torch.cat([cls, patches.mean(dim=1)], dim=-1)
