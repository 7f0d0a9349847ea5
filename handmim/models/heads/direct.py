"""Joints straight from a backbone's tokens, without a hand model: a yardstick for backbones, and
all that photos without meshes need."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from handmim.contracts import Tokens
from handmim.hand.skeleton import NUM_JOINTS, ROOT_JOINT

FEATURES = ("cls", "cls_patch")
INIT_STD = 1e-3


class KeypointState(NamedTuple):
    """An estimate of 21 joints without a mesh."""

    joints_root_m: Tensor  # [B, 21, 3]
    joints_crop_ndc: Tensor  # [B, 21, 2]

    @property
    def verts_root_m(self) -> None:
        """There is no mesh."""
        return


class KeypointOutputs(NamedTuple):
    """The mean of the training labels, then the answer."""

    steps: tuple[KeypointState, KeypointState]


class DirectHead(nn.Module):
    """Normalised token features to what 21 joints differ from their mean by.

    Args:
        dim: width of the backbone's tokens.
        features: "cls" looks at the class token, "cls_patch" at it and the mean patch token.
        hidden_dim: width of a hidden layer; None leaves the head linear.
        dropout: before the last layer.
        unit_m: metres per unit of the 3D outputs; 0.1 makes them the size of the 2D ones.
    """

    mean_joints_root_m: Tensor
    mean_joints_crop_ndc: Tensor

    def __init__(
        self,
        dim: int,
        *,
        features: str = "cls_patch",
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        unit_m: float = 0.1,
    ) -> None:
        super().__init__()
        if features not in FEATURES:
            raise ValueError(
                f"features must be one of {FEATURES}, got {features!r} (configs/head/direct.yaml)"
            )
        if unit_m <= 0:
            raise ValueError(f"unit_m must be > 0, got {unit_m} (configs/head/direct.yaml)")
        self.features, self.unit_m = features, unit_m
        width = dim * (2 if features == "cls_patch" else 1)
        layers: list[nn.Module] = [nn.LayerNorm(width)]
        if hidden_dim is not None:
            layers += [nn.Linear(width, hidden_dim), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Dropout(dropout))
        self.out = nn.Linear(width if hidden_dim is None else hidden_dim, NUM_JOINTS * 5)
        nn.init.normal_(self.out.weight, std=INIT_STD)
        nn.init.zeros_(self.out.bias)
        # Learned from the training labels, so they belong to the weights.
        self.register_buffer("mean_joints_root_m", torch.zeros(NUM_JOINTS, 3))
        self.register_buffer("mean_joints_crop_ndc", torch.zeros(NUM_JOINTS, 2))

    @torch.no_grad()
    def set_mean_joints(self, joints_root_m: Tensor, joints_crop_ndc: Tensor) -> None:
        """Set what answers are measured from: [21, 3] metres and [21, 2] crop ndc."""
        self.mean_joints_root_m.copy_(joints_root_m)
        self.mean_joints_crop_ndc.copy_(joints_crop_ndc)

    def mean_state(self, batch_size: int) -> KeypointState:
        """The same mean for every picture."""
        return KeypointState(
            self.mean_joints_root_m.expand(batch_size, -1, -1),
            self.mean_joints_crop_ndc.expand(batch_size, -1, -1),
        )

    def forward(self, tokens: Tokens) -> KeypointOutputs:
        """Tokens of one batch to the mean and the answer; fp32 from the last layer on."""
        seen = tokens.cls
        if self.features == "cls_patch":
            seen = torch.cat([seen, tokens.patches.mean(dim=1)], dim=-1)
        features = self.body(seen)
        with torch.autocast(features.device.type, enabled=False):
            delta = self.out(features.float()).unflatten(1, (NUM_JOINTS, 5))
            mean = self.mean_state(len(delta))
            joints = mean.joints_root_m + delta[..., :3] * self.unit_m
            answer = KeypointState(
                joints_root_m=joints - joints[:, ROOT_JOINT, None],
                joints_crop_ndc=mean.joints_crop_ndc + delta[..., 3:],
            )
        return KeypointOutputs((mean, answer))
