"""Random geometry of views: affine maps, flips and warps. All drawn on the CPU from a generator."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from handmim.geometry.crop import similarity
from handmim.geometry.warp import bounded


def draw_views(
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    scale: Sequence[float],
    rotation_deg: float,
    full_rotation_prob: float,
    shift_ndc: float,
    aspect: float,
    flip_prob: float,
) -> Tensor:
    """source_from_view [*shape, 2, 3] = [ s R(r) diag(f, a) | t ].

    Args:
        shape: crops and views of each.
        generator: source of randomness.
        scale: s is log-uniform in [low, high].
        rotation_deg, full_rotation_prob: r is within +- the first, or +- 180 that often.
        shift_ndc: t is within +- this on both axes.
        aspect: a is within 1 +- this.
        flip_prob: how often f = -1: the view is mirrored before anything else moves it.
    """
    u = torch.rand(*shape, 6, generator=generator) * 2 - 1
    low, high = scale
    size = torch.exp(math.log(low) + (u[..., 0] + 1) / 2 * math.log(high / low))
    full = (u[..., 5] + 1) / 2 < full_rotation_prob
    angle = u[..., 1] * torch.where(full, math.pi, math.radians(rotation_deg))
    maps = similarity(size, angle, u[..., 2:4] * shift_ndc, 1 + aspect * u[..., 4])
    if flip_prob > 0:
        flipped = torch.rand(shape, generator=generator) < flip_prob
        maps[..., 0] *= torch.where(flipped, -1.0, 1.0)[..., None]
    return maps


def draw_hidden(
    num_crops: int,
    generator: torch.Generator,
    *,
    rotation_deg: float,
    full_rotation_prob: float,
    scale: float,
    shift_ndc: float,
) -> Tensor:
    """crop_from_source [B, 2, 3], a similarity: turned by +- rotation_deg (+- 180 with
    `full_rotation_prob`), scaled by 1 +- scale, moved by +- shift_ndc."""
    u = torch.rand(num_crops, 4, generator=generator) * 2 - 1
    reach = torch.full((num_crops,), math.radians(rotation_deg))
    if full_rotation_prob > 0:
        reach[torch.rand(num_crops, generator=generator) < full_rotation_prob] = math.pi
    return similarity(1 + scale * u[:, 0], reach * u[:, 1], shift_ndc * u[:, 2:])


def draw_warps(
    shape: tuple[int, int], generator: torch.Generator, *, std_ndc: float, grid: int
) -> Tensor:
    """[*shape, 2, grid, grid] control values of smooth warps that are one-to-one: normal with this
    spread, fields that would fold flattened as a whole."""
    return bounded(torch.randn(*shape, 2, grid, grid, generator=generator) * std_ndc)
