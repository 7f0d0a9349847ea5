"""The one vector that heads without a look at places read off a picture's tokens."""

import torch
from torch import Tensor

FEATURES = ("cls", "cls_patch")


def feature_dim(features: str, dim: int) -> int:
    """Width of `token_features` for tokens of width `dim`.

    Raises: ValueError for features that are not in `FEATURES`.
    """
    if features not in FEATURES:
        raise ValueError(
            f"features must be one of {FEATURES}, got {features!r} (head.features in "
            "configs/head/direct.yaml, iterative.yaml, plain.yaml)"
        )
    return dim * (2 if features == "cls_patch" else 1)


def token_features(cls: Tensor, patches: Tensor, features: str) -> Tensor:
    """Tokens to one vector.

    Args:
        cls: [B, D].
        patches: [B, N, D], any N.
        features: "cls" is the class token, "cls_patch" it and the mean patch token.
    Returns: [B, D] or [B, 2 D].
    """
    if features == "cls":
        return cls
    return torch.cat([cls, patches.mean(dim=1)], dim=-1)
