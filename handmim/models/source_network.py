"""The network that weights come from, as far as its file states or its tensors imply it.

Tensors of equal shapes can belong to networks that compute otherwise: heads, positions, norms,
activation and tokens are compared before weights are taken.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD
from handmim.models.weight_files import WeightFile

PATCHES = "patch_embed.proj.weight"
ARGUMENTS = ("args", "config", "hyper_parameters", "hparams")
# Heads by width of what names or positions identify.
MOCO_HEADS = {384: 12, 768: 12}
MAE_HEADS = {768: 12, 1024: 16, 1280: 16}
VITPOSE_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}
DINO_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1536: 24}
DINO_ARCH = re.compile(r"(vit|deit)_(tiny|small|base|large)")
MAE_ARCH = re.compile(r"(mae_)?vit_(base|large|huge)_patch\d+")
# Hugging Face's kinds that this ViT computes, and the names of their activations in timm.
HF_KINDS = ("vit", "deit", "dinov2", "vit_mae", "vit_msn", "ijepa")
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
FOREIGN = (  # names of tensors, and what they are part of
    (r"(^|\.)(rope\w*|rotary\w*|freqs_cis|freqs|inv_freq|periods)($|\.)", "rotary positions"),
    (r"relative_position|rel_pos|rpb", "relative position biases"),
    (r"^(reg_token|register_tokens|storage_tokens)$", "register tokens"),
    (r"^dist_token$", "a distillation token"),
    (r"\.(w12|w1|w2|w3|fc1_g|fc1_x|weights_in|gate_proj|up_proj)\.", "a gated MLP (SwiGLU)"),
    (r"\.[qk]_norm\.", "norms of queries and keys"),
    (r"\.(attn\.norm|mlp\.norm|sub_norm|inner_attn_ln|ffn_ln)\.", "norms within blocks"),
    (r"^norm_pre\.", "a norm before the blocks (CLIP)"),
    (r"^patch_embed\.(norm|proj\.\d|backbone)", "a patch embedding of several layers"),
    (r"\.attn\.([qkv]|[qkv]_proj|query|key|value|in_proj)\.", "separate maps to queries and keys"),
    (r"\.(experts|attns|ffns)\.|\.lambda_|\.proj_[lw]\.|qkv\.bias_mask", "blocks of another kind"),
)


@dataclass(frozen=True)
class Stated:
    """Properties of a source network that shapes do not show; None where nothing states them.

    Args:
        by: what states them, for messages.
        timm_name: architecture under which timm builds it.
        timm_args: further arguments of it.
        num_heads: of attention.
        activation: of the MLP, under timm's name.
        norm_eps: of its norms.
        mean, std: pixel constants of its training.
        pixel_norm: of weights of this project.
    """

    by: str = "nothing"
    timm_name: str | None = None
    timm_args: dict[str, Any] = field(default_factory=dict)
    num_heads: int | None = None
    activation: str | None = None
    norm_eps: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pixel_norm: str | None = None


def stated_network(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated:
    """What a file states of its network, else what its names and positions imply.

    Args:
        file: whole content.
        weights: tensors of its ViT under timm's names.
    """
    if file.card is not None:
        card = file.card
        return Stated("timm", card.architecture, mean=tuple(card.mean), std=tuple(card.std))
    found = _ours(file) or _timm_config(file.config) or _hf_config(file.config)
    return found or _command_line(file, weights) or _implied(file, weights)


def foreign_parts(weights: Mapping[str, Tensor], mine: Mapping[str, Any]) -> list[str]:
    """What the names show that our ViT lacks, each with the tensor that shows it.

    Args:
        weights: tensors of the source under timm's names.
        mine: of our ViT.
    """
    extra = [name for name in weights if name not in mine]
    found = []
    for pattern, part in FOREIGN:
        if shown := next((name for name in extra if re.search(pattern, name)), None):
            found.append(f"{part} ({shown})")
    gates, inner = (weights.get(f"blocks.0.mlp.{part}.weight") for part in ("fc1", "fc2"))
    if gates is not None and inner is not None and len(gates) == 2 * inner.shape[-1]:
        found.append("a gated MLP (fc1 has twice the rows that fc2 takes)")
    if "pos_embed" not in weights and "pos_embed" in mine:
        found.append("no learned positions (pos_embed is missing)")
    bare = [n for n in weights if re.search(r"norm\d\.weight$", n) and n[:-6] + "bias" in mine]
    if bare and not any(name[:-6] + "bias" in weights for name in bare):
        found.append(f"norms without bias, as RMSNorm ({bare[0][:-6]}bias is missing)")
    return found


def _ours(file: WeightFile) -> Stated | None:
    """Exports and checkpoints of this project."""
    backbone = value_below(file.state, "config", "task", "backbone")
    if isinstance(backbone, Mapping):
        size = backbone.get("size")
        args = dict(size) if isinstance(size, Mapping) else {}
        name, norm = backbone.get("arch"), backbone.get("pixel_norm")
    elif "pixel_norm" in file.meta:
        try:
            args = json.loads(file.meta.get("timm_args", "{}"))
        except ValueError:
            args = {}
        name, norm = file.meta.get("timm_name"), file.meta["pixel_norm"]
    else:
        return None
    heads = _int(file.meta.get("num_heads")) or _int(value_below(args, "num_heads"))
    return Stated(
        "its own metadata",
        name if isinstance(name, str) and timm.is_model(name) else None,
        args if isinstance(args, dict) else {},
        num_heads=heads,
        pixel_norm=None if norm is None else str(norm),
    )


def _timm_config(config: Mapping[str, Any]) -> Stated | None:
    """The config.json that timm writes to model hubs."""
    name = config.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    args = config.get("model_args")
    card = config.get("pretrained_cfg")
    mean, std = (_constants(value_below(card, key)) for key in ("mean", "std"))
    by = f"config.json beside it ({name})"
    return Stated(by, name, args if isinstance(args, dict) else {}, mean=mean, std=std)


def _hf_config(config: Mapping[str, Any]) -> Stated | None:
    """The config.json of Hugging Face's transformers."""
    kind = config.get("model_type")
    if kind not in HF_KINDS:
        return None
    act, eps = config.get("hidden_act"), config.get("layer_norm_eps")
    return Stated(
        f"config.json beside it ({kind})",
        num_heads=_int(config.get("num_attention_heads")),
        activation=ACTIVATIONS.get(act, act) if isinstance(act, str) else None,
        norm_eps=float(eps) if isinstance(eps, (int, float)) else None,
        mean=_constants(config.get("image_mean")),
        std=_constants(config.get("image_std")),
    )


def _command_line(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated | None:
    """The arguments that a training script saved beside the weights."""
    width, base = _width(weights), Stated("", activation="gelu", norm_eps=1e-6)
    for name in _named(file.state):
        stated = replace(base, by=f"its arguments ({name})")
        if timm.is_model(name):
            kwargs = value_below(file.state, "args", "model_kwargs")
            args = dict(kwargs) if isinstance(kwargs, Mapping) else {}
            return Stated(stated.by, name.split(".")[0], args)
        if MAE_ARCH.fullmatch(name) and width in MAE_HEADS:
            return replace(stated, num_heads=MAE_HEADS[width])
        if DINO_ARCH.fullmatch(name) and {"student", "teacher"} <= file.state.keys():
            return replace(stated, num_heads=DINO_HEADS.get(width))
    return None


def _implied(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated:
    """What names and positions identify."""
    width, base = _width(weights), Stated("", activation="gelu", norm_eps=1e-6)
    base = replace(base, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    position = weights.get("pos_embed")
    first = None if position is None else _fixed_axis(position)
    if any("momentum_encoder." in k or "base_encoder." in k for k in file.tensors) or first == 0:
        by = "its names" if first != 0 else "its fixed positions"
        return replace(base, by=f"{by} (MoCo-v3)", num_heads=MOCO_HEADS.get(width))
    if first == 1 and width in MAE_HEADS:
        return replace(base, by="its fixed positions (MAE)", num_heads=MAE_HEADS[width])
    if any(k.endswith("last_norm.weight") for k in file.tensors):
        return replace(base, by="its names (ViTPose)", num_heads=VITPOSE_HEADS.get(width))
    is_dinov2 = "blocks.0.ls1.gamma" in weights and any(k.endswith("mask_token") for k in
                                                        file.tensors)  # fmt: skip
    if is_dinov2 and position is not None and position.shape[1] == 37**2 + 1:
        return replace(base, by="its names (DINOv2)", num_heads=DINO_HEADS.get(width))
    return Stated()


def _named(state: Mapping[str, Any]) -> Iterator[str]:
    """Names of architectures among saved arguments."""
    for holder in (state, *(state.get(key) for key in ARGUMENTS)):
        if isinstance(holder, argparse.Namespace):
            holder = vars(holder)
        for key in ("arch", "model", "model_name"):
            name = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(name, str):
                yield name


def _fixed_axis(position: Tensor) -> int | None:
    """Which axis of a square grid the first half of fixed sine-cosine positions encodes.

    Args:
        position: [1, 1 + g*g, D], or without the class token's.
    Returns: 0 for rows (MoCo-v3), 1 for columns (MAE), None for learned positions.
    """
    patches = position[0] if position.ndim == 3 else position.new_zeros(0, 0)
    grid, width = math.isqrt(len(patches)), patches.shape[-1]
    patches = patches[len(patches) - grid**2 :].float()
    if grid < 2 or width % 4:
        return None
    places = torch.arange(grid, dtype=torch.float32).repeat_interleave(grid)
    omega = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    angle = places[:, None] * omega
    wanted = torch.cat([angle.sin(), angle.cos()], dim=1)
    for axis, half in enumerate(patches.split(width // 2, dim=1)):
        if torch.allclose(half, wanted, atol=1e-3):
            return axis
    return None


def value_below(node: Any, *keys: str) -> Any:
    """What lies below nested keys; None where one is missing."""
    for key in keys:
        node = vars(node) if isinstance(node, argparse.Namespace) else node
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _width(weights: Mapping[str, Tensor]) -> int:
    return len(weights[PATCHES])


def _int(value: Any) -> int | None:
    return int(value) if str(value).isdecimal() else None


def _constants(values: Any) -> tuple[float, ...] | None:
    is_triple = isinstance(values, (list, tuple)) and len(values) == 3
    if not is_triple or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in values):
        return None
    return tuple(map(float, values))  # shares of the brightest pixel
