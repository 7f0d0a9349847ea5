"""Joints straight from a backbone's tokens, without a hand model."""

from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from handmim.hand.skeleton import NUM_JOINTS, ROOT_JOINT
from handmim.models.heads.hand_head import feature_dim, token_features, token_layers
from handmim.types import Intrinsics, Tokens
from handmim.utils.arguments import above, one_of

COORDS = ("3d", "25d")
INIT_STD = 1e-3


class KeypointState(NamedTuple):
    """An estimate of 21 joints without a mesh."""

    joints_root_m: Tensor  # [B, 21, 3]
    joints_crop_ndc: Tensor  # [B, 21, 2]
    verts_root_m: None = None


class KeypointOutputs(NamedTuple):
    """The mean of the training labels, then the estimate."""

    steps: tuple[KeypointState, KeypointState]


@dataclass(eq=False, repr=False)
class DirectHead(nn.Module):
    """Normalised token features to the differences of 21 joints from their mean.

    unit_m: metres per unit of the 3D outputs. coords: "3d" predicts joints in metres and in the
    image separately; "25d" (Iqbal et al. 2018, arXiv 1804.09534) joints in the image, depths and
    one log scale, from which metres follow."""

    dim: int
    _: KW_ONLY
    features: str = "cls_patch"
    hidden_dim: int | None = None
    dropout: float = 0.0
    unit_m: float = 0.1
    coords: str = "3d"
    mean_joints_root_m: Tensor = field(init=False)
    mean_joints_crop_ndc: Tensor = field(init=False)
    mean_scale_ndc_per_m: Tensor = field(init=False)
    tapped_blocks = ()

    def __post_init__(self) -> None:
        super().__init__()
        above(0, unit_m=self.unit_m)
        one_of("coords", self.coords, COORDS)
        width = feature_dim(self.features, self.dim)
        hidden, num_hidden = self.hidden_dim or width, 0 if self.hidden_dim is None else 1
        self.body = token_layers(width, hidden, num_hidden, self.dropout)
        self.out = nn.Linear(hidden, NUM_JOINTS * 5 if self.coords == "3d" else NUM_JOINTS * 3 + 1)
        nn.init.normal_(self.out.weight, std=INIT_STD)
        nn.init.zeros_(self.out.bias)
        # Learned from the training labels, so they belong to the weights.
        self.register_buffer("mean_joints_root_m", torch.zeros(NUM_JOINTS, 3))
        self.register_buffer("mean_joints_crop_ndc", torch.zeros(NUM_JOINTS, 2))
        if self.coords == "25d":
            self.register_buffer("mean_scale_ndc_per_m", torch.tensor(8.0))

    def set_mean_joints(self, joints_root_m: Tensor, joints_crop_ndc: Tensor) -> None:
        """Set the mean that estimates differ from: [21, 3] metres and [21, 2] crop ndc."""
        self.mean_joints_root_m.copy_(joints_root_m)
        self.mean_joints_crop_ndc.copy_(joints_crop_ndc)

    def set_mean_scale(self, scale_ndc_per_m: float) -> None:
        """Set the mean scale of coords=25d: ndc units per metre of a typical hand, > 0."""
        above(0, scale_ndc_per_m=scale_ndc_per_m)
        self.mean_scale_ndc_per_m.fill_(scale_ndc_per_m)

    def mean_state(self, batch_size: int) -> KeypointState:
        """The same mean for every image."""
        means = self.mean_joints_root_m, self.mean_joints_crop_ndc
        in_space, in_crop = (mean.expand(batch_size, -1, -1) for mean in means)
        return KeypointState(in_space, in_crop)

    def forward(self, tokens: Tokens, intrinsics: Intrinsics | None = None) -> KeypointOutputs:
        """Tokens of one batch to the mean and the estimate; fp32 from the last layer on."""
        features = self.body(token_features(tokens.cls, tokens.patches, self.features))
        with torch.autocast(features.device.type, enabled=False):
            delta = self.out(features.float())
            mean = self.mean_state(len(delta))
            if self.coords == "3d":  # joint by joint three numbers in metres, two in the image
                delta = delta.unflatten(1, (NUM_JOINTS, 5))
                joints = mean.joints_root_m + delta[..., :3] * self.unit_m
                joints_ndc = mean.joints_crop_ndc + delta[..., 3:]
            else:  # joint by joint depth and two numbers in the image; last the log scale
                scale = self.mean_scale_ndc_per_m * delta[:, -1].exp()
                delta = delta[:, :-1].unflatten(1, (NUM_JOINTS, 3))
                joints_ndc = mean.joints_crop_ndc + delta[..., 1:]
                depth = mean.joints_root_m[..., 2:] + delta[..., :1] * self.unit_m
                joints = torch.cat([joints_ndc / scale[:, None, None], depth], dim=-1)
            estimate = KeypointState(joints - joints[:, ROOT_JOINT, None], joints_ndc)
        return KeypointOutputs((mean, estimate))
