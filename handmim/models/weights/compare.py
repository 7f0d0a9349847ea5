"""One forward pass of a source's weights in timm's own network and in ours: tokens show what shapes
do not, heads, activation, epsilon or rotary positions."""

import inspect
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

from handmim.models.vit import ViT, activation_name
from handmim.models.weights.names import PATCHES, Weights
from handmim.models.weights.network import Stated

# Arguments of timm itself, which choose files to read.
LOADING = {*inspect.signature(timm.create_model).parameters, "features_only"} - {"kwargs"}
MAX_SETTING = 1024  # depth and widths, where no tensor is larger
MAX_GRID = 14  # patches along a side of the compared image
OVERRIDES = {"heads": " (++task.backbone.size.num_heads={})",
             "activation": " (++task.backbone.size.act_layer={})"}  # fmt: skip
FREE_ARGS = ("img_size", "patch_size", "num_classes", "weight_init", "drop_path_rate")


def is_same_network(backbone: ViT, stated: Stated) -> bool:
    """Whether architecture and arguments are the stated ones, image and patch size aside."""
    mine, theirs = (
        {k: v for k, v in args.items() if k not in FREE_ARGS}
        for args in (backbone.timm_args, stated.timm_args)
    )
    return (backbone.timm_name, mine) == (stated.timm_name, theirs)


def token_difference(
    backbone: ViT, stated: Stated, raw: Weights, weights: Weights, grid: tuple[int, int]
) -> tuple[float, list[str]]:
    """Compare timm's network with `raw`, the source's tensors, and the backbone's with `weights`,
    as it takes them, on a corner of their `grid`.

    Returns: relative norm of the difference of patch tokens, and known differences of the networks.
    Raises: ValueError where timm's architecture is not that of the tensors."""
    patch_px = tuple(weights[PATCHES].shape[-2:])
    img_hw = [min(side, MAX_GRID) * px for side, px in zip(grid, patch_px, strict=True)]
    size = {"img_size": img_hw, "patch_size": patch_px, "num_classes": 0}
    theirs = _filled(str(stated.timm_name), {**stated.timm_args, **size}, _corner(raw, grid))
    with_token = {"cls_token": torch.zeros(1, 1, backbone.embed_dim), **_corner(weights, grid)}
    ours = _filled(backbone.timm_name, {**backbone.timm_args, **size}, with_token)
    image = torch.randn(1, 3, *img_hw, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = (
            net.forward_features(image)[0, net.num_prefix_tokens :] for net in (theirs, ours)
        )
    mine = _properties(ours)
    unlike = [
        f"{name} {value} against {mine[name]}{OVERRIDES.get(name, '').format(value)}"
        for name, value in _properties(theirs).items()
        if value != mine[name]
    ]
    return float((found - expected).norm() / expected.norm()), unlike


def _corner(weights: Weights, grid: tuple[int, int]) -> Weights:
    """Weights with positions of the grid's first rows and columns alone."""
    if "pos_embed" not in weights or max(grid) <= MAX_GRID:
        return weights
    position, num = weights["pos_embed"], grid[0] * grid[1]
    first, patches = position.split_with_sizes([position.shape[1] - num, num], dim=1)
    patches = patches.unflatten(1, grid)[:, :MAX_GRID, :MAX_GRID].flatten(1, 2)
    return {**weights, "pos_embed": torch.cat([first, patches], dim=1)}


def _filled(name: str, args: dict[str, Any], weights: Mapping[str, Tensor]) -> Any:
    """timm's network with given weights, which are not copied."""
    bound = max(MAX_SETTING, *(max(w.shape, default=0) for w in weights.values()))
    for key, value in args.items():
        if key in LOADING or (isinstance(value, (int, float)) and abs(value) > bound):
            raise ValueError(f"its argument {key}={value} is not taken")
    net = _built(name, args, weights)
    if "norm.weight" not in weights:
        net.norm = nn.Identity()
    state = net.state_dict()
    missing = sorted(state.keys() - weights.keys())
    surplus = [k for k in weights if k not in state and not k.startswith("norm.")]
    if missing or surplus:
        raise ValueError(f"timm's {name} has {missing[:2]}, the file {surplus[:2]}")
    if wrong := [k for k in state if weights[k].shape != state[k].shape]:
        raise ValueError(f"timm's {name} has another shape of {wrong[0]}")
    net.load_state_dict({k: weights[k].float() for k in state}, assign=True)
    return net.eval()


def _built(name: str, args: dict[str, Any], weights: Mapping[str, Tensor]) -> Any:
    """timm's network without values, but for buffers that no weights fill."""
    net: Any
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # nothing is drawn or stored
                net = timm.create_model(name, pretrained=False, **args)
            has_values = {*weights, *dict(net.named_parameters())}
            if any(k not in has_values for k, _ in net.named_buffers()):
                net = timm.create_model(name, pretrained=False, **args)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"timm cannot build {name} of this size: {error}") from error
    return net


def _properties(net: Any) -> dict[str, Any]:
    block = net.blocks[0]
    norm, attn, mlp = (getattr(block, name, None) for name in ("norm1", "attn", "mlp"))
    is_usual = isinstance(norm, (LayerNorm, nn.LayerNorm))
    return {
        "heads": getattr(attn, "num_heads", None),
        "positions": "rotary" if getattr(net, "rope", None) is not None else "learned",
        "activation": activation_name(getattr(mlp, "act", None)),
        "norm": "LayerNorm" if is_usual else type(norm).__name__,
        "epsilon of norms": getattr(norm, "eps", None),
        "class token": "present" if getattr(net, "cls_token", None) is not None else "absent",
    }
