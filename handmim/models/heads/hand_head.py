"""What all heads share that regress a hand model: state, refinement, projection into the crop."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from handmim.geometry.rotation import matrix_to_rot6d, rot6d_to_matrix
from handmim.hand.crop_camera import CropCamera
from handmim.hand.model import HandLayer
from handmim.hand.skeleton import ROOT_JOINT
from handmim.types import HandOutputs, HandState, Intrinsics, Tokens
from handmim.utils.arguments import one_of

NUM_ROT6D, NUM_CAM = 96, 3
FEATURES = ("cls", "cls_patch")
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "none": nn.Identity}


class HandHead(nn.Module):
    """Tokens in, a hand model's parameters out, as a list of refined estimates.

    State: 16 rotations in 6D, betas, camera (log(s / s0), tx, ty), where s0 is `scale0_per_m`.
    Refinement starts at the mean hand of the training labels. `standardise_cls` reads the class
    token relative to its mean and deviation over training images."""

    mean_rot6d: Tensor
    mean_cam: Tensor
    cls_mean: Tensor
    cls_std: Tensor
    num_steps = 1
    detach = False  # hand states on without their gradient
    tapped_blocks: tuple[int, ...] = ()  # blocks, counted from 1, that fill `Tokens.taps`
    drawn: frozenset[str] = frozenset()  # auxiliary fields of the outputs
    steps_train_alone = False  # whether a step has weights that its own estimate alone trains

    def __init__(
        self,
        dim: int,
        hand: HandLayer,
        camera: str = "weak",
        scale0_per_m: float = 8.0,
        standardise_cls: bool = False,
    ) -> None:
        super().__init__()
        if hand.side != "right":
            raise ValueError(
                "the head regresses right hands (left ones are mirrored before and after), got the "
                f"{hand.side} hand {hand.name} "
            )
        self.hand, self.num_betas = hand, hand.num_betas
        self.camera = CropCamera(camera, scale0_per_m)
        self.standardise_cls = standardise_cls
        self.state_dim = NUM_ROT6D + self.num_betas + NUM_CAM
        # Learned from the training labels, so they belong to the weights.
        self.register_buffer("mean_rot6d", matrix_to_rot6d(hand.mean_rotmats.float()))
        self.register_buffer("mean_cam", torch.zeros(NUM_CAM))
        self.register_buffer("cls_mean", torch.zeros(dim))
        self.register_buffer("cls_std", torch.ones(dim))

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
        shared = [part.expand(batch_size, *part.shape[1:]) for part in self._posed(state[:1])]
        return state, self._projected(shared, intrinsics)

    def decode(self, state: Tensor, intrinsics: Intrinsics | None = None) -> HandState:
        """[B, S] state to rotations, mesh and projections; fp32 whatever the autocast state."""
        return self._projected(self._posed(state), intrinsics)

    def _posed(self, state: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(state.device.type, enabled=False):
            rot6d, betas, cam = state.float().split([NUM_ROT6D, self.num_betas, NUM_CAM], dim=1)
            rotmats = rot6d_to_matrix(rot6d.unflatten(1, (16, 6)))
            mesh = self.hand(rotmats, betas)
            root = mesh.joints_m[:, ROOT_JOINT, None]
            return rotmats, betas, cam, mesh.verts_m - root, mesh.joints_m - root

    def _projected(self, posed: Sequence[Tensor], intrinsics: Intrinsics | None) -> HandState:
        rotmats, betas, cam, verts, joints = posed
        with torch.autocast(cam.device.type, enabled=False):
            transl, is_metric = self.camera.root_translation(cam, intrinsics)
            verts_ndc, joints_ndc = (
                self.camera.project(points, cam, transl, intrinsics) for points in (verts, joints)
            )
        hand = (rotmats, betas, cam, verts, joints, verts_ndc, joints_ndc)
        return HandState(*hand, transl, is_metric)

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
