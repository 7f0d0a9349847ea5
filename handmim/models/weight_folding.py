"""Exact changes that let our plain ViT compute what the source of its weights computes, and the
resampling of patches and positions to other sizes."""

import math
import re
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT
from handmim.models.weight_files import OPTION

PATCHES, PATCH_BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
SCALED_BY = {  # layer scale and the map whose output it multiplies
    "ls1.gamma": "attn.proj",
    "gamma_1": "attn.proj",
    "ls2.gamma": "mlp.fc2",
    "gamma_2": "mlp.fc2",
}


def fold_layer_scale(weights: dict[str, Tensor], mine: dict[str, Any]) -> list[str]:
    """Multiply each branch's scale into the map before it, in place.

    Args:
        weights: of the source.
        mine: tensors of our ViT, whose own scales stay.
    Returns: what was done.
    """
    scales = [
        (found[1], found[2], name)
        for name in weights
        if (found := re.match(r"(blocks\.\d+\.)(.+)", name))
        and found[2] in SCALED_BY
        and name not in mine
    ]
    for block, scale, name in scales:
        gamma = weights.pop(name)
        for part, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            key = f"{block}{SCALED_BY[scale]}.{part}"
            if key in weights:
                weights[key] = weights[key] * factor
    return [f"layer scale of {len(scales)} branches"] if scales else []


def fold_biases(weights: dict[str, Tensor], mine: dict[str, Any]) -> list[str]:
    """Write out biases that the source leaves away, which is zeros, in place.

    BEiT and EVA have biases of queries and values alone; other ViTs have none of one kind at all.
    """
    done = []
    for name in [k for k in weights if k.endswith(".attn.q_bias")]:
        q, v = weights.pop(name), weights.pop(name.replace("q_bias", "v_bias"), None)
        if v is None:
            weights[name] = q
            continue
        k = weights.pop(name.replace("q_bias", "k_bias"), torch.zeros_like(q))
        weights[name.replace("q_bias", "qkv.bias")] = torch.cat([q, k, v])
        done = ["biases of queries and values"]
    for kind in ("attn.qkv.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias", PATCH_BIAS):
        names = [k for k in mine if k.endswith(kind)]
        if names and not any(k.endswith(kind) for k in weights):
            weights |= {k: torch.zeros(mine[k].shape) for k in names}
            done.append(f"{kind} is 0")
    return done


def fold_pixel_constants(
    weights: dict[str, Tensor], mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> list[str]:
    """Let the patch embedding take pixels normalised by ImageNet's constants, in place."""
    if mean is None or std is None or 0.0 in std or (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return []
    theirs, scale = torch.tensor(mean), torch.tensor(std)
    kernel = weights[PATCHES] / scale.view(1, 3, 1, 1)  # of pixels less their mean
    shift = (kernel.sum(dim=(2, 3)) * (torch.tensor(IMAGENET_MEAN) - theirs)).sum(dim=1)
    weights[PATCHES] = kernel * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    weights[PATCH_BIAS] = weights.get(PATCH_BIAS, 0.0) + shift
    return [f"pixel constants {mean}, {std}"]


def complete_positions(
    weights: dict[str, Tensor], source: str
) -> tuple[tuple[int, int], list[str]]:
    """Give positions a first one for the class token where they have none, in place.

    Returns: rows and columns of the source's grid, and what was done.
    Raises: ValueError for positions of no known grid.
    """
    position, width = weights["pos_embed"], len(weights[PATCHES])
    if position.ndim != 3 or position.shape[0] != 1 or position.shape[2] != width:
        raise ValueError(
            f"{source} has positions {tuple(position.shape)}, [1, N, {width}] are required "
            f"({OPTION})"
        )
    count = position.shape[1]
    grid = _grid(count)
    if grid is not None and count > 1:
        position = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
        weights["pos_embed"] = position
        return grid, ["pos_embed: class token gets 0"]
    grid = _grid(count - 1)
    if grid is None:
        raise ValueError(
            f"{source} has {count} positions, which is no square grid and no upright one of 4:3, "
            f"with or without one class token ({OPTION})"
        )
    if grid[0] == grid[1] or "cls_token" in weights:
        return grid, []
    # ViTPose has no class token and adds its position to those of all patches.
    first, rest = position[:, :1], position[:, 1:]
    weights["pos_embed"] = torch.cat([torch.zeros_like(first), rest + first], dim=1)
    return grid, ["pos_embed: first position added to the others (ViTPose)"]


def _grid(count: int) -> tuple[int, int] | None:
    """Rows and columns of so many patches: square, or 4:3 upright as ViTPose's 16 x 12."""
    side, third = math.isqrt(max(count, 0)), math.isqrt(max(count, 0) // 12)
    if count > 0 and side**2 == count:
        return side, side
    return (4 * third, 3 * third) if third and 12 * third**2 == count else None


def resample(backbone: ViT, weights: dict[str, Tensor], grid: tuple[int, int]) -> list[str]:
    """Patch and position embeddings to a backbone's patch side and grid, in place.

    Args:
        backbone: gives both.
        weights: with completed positions.
        grid: rows and columns of these positions.
    Returns: what was done.
    """
    done: list[str] = []
    kernel, side = weights[PATCHES], backbone.patch_px
    if tuple(kernel.shape[-2:]) != (side, side):
        weights[PATCHES] = resample_patch_embed(kernel, [side, side])
        done.append(f"patch_embed {kernel.shape[-1]} px -> {side} px")
    if grid != backbone.grid_hw:
        to = list(backbone.grid_hw)
        weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], to, list(grid))
        done.append("pos_embed {} x {} -> {} x {}".format(*grid, *to))
    return done
