"""The network that weights come from, as far as its file states or its tensors imply it.

Tensors of equal shapes can belong to networks that compute otherwise: heads, positions, norms,
activation and tokens are compared before weights are taken.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import timm
import torch
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD
from handmim.models.weight_files import WeightFile
from handmim.models.weight_settings import (
    MAX_HOLDERS,
    constants,
    holders_of,
    parsed,
    said_parts,
    said_settings,
    value_below,
    whole,
)

PATCHES = "patch_embed.proj.weight"
# Heads by width of what names or positions identify.
MOCO_HEADS = {384: 12, 768: 12}
MAE_HEADS = {768: 12, 1024: 16, 1280: 16}
VITPOSE_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}
DINO_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1536: 24}
DINO_ARCH = re.compile(r"(vit|deit)_(tiny|small|base|large)")
MAE_ARCH = re.compile(r"(mae_)?vit_(base|large|huge)_patch\d+")
# Hugging Face's kinds that this ViT computes.
HF_KINDS = ("vit", "deit", "dinov2", "vit_mae", "vit_msn", "ijepa")
FOREIGN = (  # names of tensors, and what they are part of
    (r"(^|\.)(rope\w*|rotary\w*|freqs_cis|freqs|inv_freq|periods)($|\.)", "rotary positions"),
    (r"relative_position|rel_pos|rpb", "relative position biases"),
    (r"^dist_token$", "a distillation token"),
    (r"^(?!dist_token)[^.]*(reg|_token)[^.]*$", "register tokens"),
    (r"\.(w12|w1|w2|w3|fc1_g|fc1_x|weights_in|gate_proj|up_proj)\.", "a gated MLP (SwiGLU)"),
    (r"\.[qk]_norm\.", "norms of queries and keys"),
    (r"\.(attn\.norm|mlp\.norm|sub_norm|inner_attn_ln|ffn_ln)\.", "norms within blocks"),
    (
        r"^(norm_pre|ln_pre|pre_\w*norm|\w*emb\w*_norm|norm_\w*emb\w*|patch_norm)\.",
        "a norm before the blocks (CLIP)",
    ),
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
        likely_heads: what the heads probably are, where nothing states them, and why.
        unknown: what is stated and is not known here, or not a part of this ViT.
    """

    by: str = ""
    timm_name: str | None = None
    timm_args: dict[str, Any] = field(default_factory=dict)
    num_heads: int | None = None
    activation: str | None = None
    norm_eps: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pixel_norm: str | None = None
    likely_heads: tuple[int, str] | None = None
    unknown: tuple[str, ...] = ()


def stated_network(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated:
    """What a file states of its network, else what its names and positions imply.

    Args:
        file: whole content.
        weights: tensors of its ViT under timm's names.
    Raises: ValueError where it states two values of one setting.
    """
    if file.card is not None:
        card = file.card
        return Stated("timm", card.architecture, mean=tuple(card.mean), std=tuple(card.std))
    if found := _ours(file):
        return found
    kind = _timm_config(file.config) or _command_line(file, weights) or _implied(file, weights)
    said, by = said_settings(file, len(weights[PATCHES]))
    if kind.timm_name is not None:
        args = {"num_heads": said.get("num_heads"), "act_layer": said.get("activation")}
        stated = {key: value for key, value in args.items() if value is not None}
        said["timm_args"] = stated | kind.timm_args
    names = " and ".join(filter(None, [kind.by, *by])) or "nothing"
    parts = [] if kind.timm_name else said_parts(file)
    unknown = tuple(filter(None, [_unknown_kind(file.config), *parts]))
    return replace(kind, **said, by=names, unknown=unknown)


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


def public_heads(width: int) -> int | None:
    """Heads of timm's plain ViTs of a width: 64 channels each up to ViT-L, 16 heads in ViT-H, g, G.

    None where widths do not tell.
    """
    if width in (1280, 1408, 1664):
        return 16
    return width // 64 if width <= 1024 and width % 64 == 0 else None


def usual_heads(stated: Stated, width: int, num_heads: int) -> str:
    """Words about heads that a source of a width probably has, where ours are not as many."""
    usual, have = stated.likely_heads or (public_heads(width), f"public ViTs of width {width} have")
    if usual in (None, num_heads):
        return ""
    return (
        f"; {have} {usual}, this backbone has {num_heads} (++task.backbone.size.num_heads={usual})"
    )


def _ours(file: WeightFile) -> Stated | None:
    """Exports and checkpoints of this project."""
    backbone = value_below(file.state, "config", "task", "backbone")
    if isinstance(backbone, Mapping):
        size = backbone.get("size")
        args = dict(size) if isinstance(size, Mapping) else {}
        name, norm = backbone.get("arch"), backbone.get("pixel_norm")
    elif "pixel_norm" in file.meta:
        args = parsed(file.meta.get("timm_args", "{}"))
        name, norm = file.meta.get("timm_name"), file.meta["pixel_norm"]
    else:
        return None
    heads = whole(file.meta.get("num_heads")) or whole(value_below(args, "num_heads"))
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
    mean, std = (constants(value_below(card, key)) for key in ("mean", "std"))
    by = f"config.json beside it ({name})"
    return Stated(by, name, args if isinstance(args, dict) else {}, mean=mean, std=std)


def _unknown_kind(config: Mapping[str, Any]) -> str | None:
    """What a config.json says that the network is, where that is not known here."""
    name, kind, classes = (config.get(k) for k in ("architecture", "model_type", "architectures"))
    if isinstance(name, str) and not timm.is_model(name):
        return f"config.json beside it names architecture {name[:80]}, which timm does not have"
    if not isinstance(kind, str):
        if not isinstance(classes, list) or not classes or isinstance(name, str):
            return None
        kind = re.sub(r"(Model|Backbone|For[A-Z]\w+)$", "", str(classes[0]))
    known = {k.replace("_", "") for k in HF_KINDS}
    is_known = kind.lower().replace("_", "") in known
    return None if is_known else f"config.json beside it names {kind[:80]}, which is not known here"


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
    has_names = any("momentum_encoder." in k or "base_encoder." in k for k in file.tensors)
    if has_names or (first == 0 and str(file.state.get("arch")).startswith("vit_")):
        by = "its names" if has_names else "its fixed positions and arch"
        return replace(base, by=f"{by} (MoCo-v3)", num_heads=MOCO_HEADS.get(width))
    if first == 0 and width in MOCO_HEADS:  # others fix their positions so too
        return Stated(likely_heads=(MOCO_HEADS[width], "MoCo-v3, which has such positions, has"))
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
    for _, _, holder in islice(holders_of(state), MAX_HOLDERS):
        for key in ("arch", "model", "model_name"):
            if isinstance(name := holder.get(key), str):
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


def _width(weights: Mapping[str, Tensor]) -> int:
    return len(weights[PATCHES])
