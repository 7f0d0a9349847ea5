"""The network that weights come from, as far as its file states or its tensors imply it.

Tensors of equal shapes can belong to networks that compute otherwise: heads, positions, norms,
activation and tokens are compared before weights are taken.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import timm
import torch
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD
from handmim.models.weights.files import WeightFile
from handmim.models.weights.names import PATCHES
from handmim.models.weights.settings import (
    MAX_HOLDERS,
    holders_of,
    parsed,
    pixel_constants,
    stated_parts,
    stated_settings,
    value_below,
    whole_number,
)

# Heads by width of what names or positions identify.
MOCO = {384: 12, 768: 12}
MAE = {768: 12, 1024: 16, 1280: 16}
VITPOSE = {384: 12, 768: 12, 1024: 16, 1280: 16}
DINO = {192: 3, 384: 6, 768: 12, 1024: 16, 1536: 24}
DINO_ARCH = re.compile(r"(vit|deit)_(tiny|small|base|large)")
MAE_ARCH = re.compile(r"(mae_)?vit_(base|large|huge)_patch\d+")
HF_KINDS = ("vit", "deit", "dinov2", "vitmae", "vitmsn", "ijepa")  # that this ViT computes
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
    """Properties of a source network that shapes do not show; None where nothing states them."""

    by: str = ""  # source of the statements, for messages
    timm_name: str | None = None  # architecture under which timm builds it
    timm_args: dict[str, Any] = field(default_factory=dict)
    num_heads: int | None = None
    activation: str | None = None  # of the MLP, under timm's name
    norm_eps: float | None = None
    mean: tuple[float, ...] | None = None  # pixel constants of its training
    std: tuple[float, ...] | None = None
    pixel_norm: str | None = None  # of weights of this project
    likely_heads: tuple[int, str] | None = None  # where nothing states them, and the reason
    unknown: tuple[str, ...] = ()  # statements not known here, or of parts that this ViT lacks


def stated_network(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated:
    """Statements of a file about its network, else what names and positions imply.

    Args:
        file: whole content.
        weights: tensors of its ViT under timm's names.
    Raises: ValueError where it states two values of one setting.
    """
    if (card := file.card) is not None:
        return Stated("timm", card.architecture, mean=tuple(card.mean), std=tuple(card.std))
    if found := _ours(file):
        return found
    kind = _timm_config(file.config) or _command_line(file, weights) or _implied(file, weights)
    settings, by = stated_settings(file, len(weights[PATCHES]))
    if kind.timm_name is not None:
        args = {"num_heads": settings.get("num_heads"), "act_layer": settings.get("activation")}
        given = {key: value for key, value in args.items() if value is not None}
        settings["timm_args"] = given | kind.timm_args
    names = " and ".join(filter(None, [kind.by, *by])) or "nothing"
    parts = [] if kind.timm_name else stated_parts(file)
    unknown = tuple(filter(None, [_unknown_kind(file.config), *parts]))
    return replace(kind, **settings, by=names, unknown=unknown)


def foreign_parts(weights: Mapping[str, Tensor], mine: Mapping[str, Any]) -> list[str]:
    """Parts that our ViT lacks, each with the tensor that shows it.

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
    """Heads of timm's plain ViTs of a width: 64 channels each up to ViT-L, 16 heads in ViT-H, g, G;
    None for other widths."""
    if width in (1280, 1408, 1664):
        return 16
    return width // 64 if width <= 1024 and width % 64 == 0 else None


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
    heads = file.meta.get("num_heads"), value_below(args, "num_heads")
    return Stated(
        "its own metadata",
        name if isinstance(name, str) and timm.is_model(name) else None,
        args if isinstance(args, dict) else {},
        num_heads=whole_number(heads[0]) or whole_number(heads[1]),
        pixel_norm=None if norm is None else str(norm),
    )


def _timm_config(config: Mapping[str, Any]) -> Stated | None:
    """The config.json that timm writes to model hubs."""
    name, args = config.get("architecture"), config.get("model_args")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    card = config.get("pretrained_cfg")
    mean, std = (pixel_constants(value_below(card, key)) for key in ("mean", "std"))
    by = f"config.json beside it ({name})"
    return Stated(by, name, args if isinstance(args, dict) else {}, mean=mean, std=std)


def _unknown_kind(config: Mapping[str, Any]) -> str | None:
    """The network that a config.json names, where it is not known here."""
    name, kind, classes = (config.get(k) for k in ("architecture", "model_type", "architectures"))
    if isinstance(name, str) and not timm.is_model(name):
        return f"config.json beside it names architecture {name[:80]}, which timm does not have"
    if not isinstance(kind, str):
        if not isinstance(classes, list) or not classes or isinstance(name, str):
            return None
        kind = re.sub(r"(Model|Backbone|For[A-Z]\w+)$", "", str(classes[0]))
    is_known = kind.lower().replace("_", "") in HF_KINDS
    return None if is_known else f"config.json beside it names {kind[:80]}, which is not known here"


def _command_line(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated | None:
    """The arguments that a training script saved beside the weights."""
    width, is_dino = len(weights[PATCHES]), {"student", "teacher"} <= file.state.keys()
    for _, _, holder in islice(holders_of(file.state), MAX_HOLDERS):
        for name in (holder.get(key) for key in ("arch", "model", "model_name")):
            if not isinstance(name, str):
                continue
            stated = Stated(f"its arguments ({name})", activation="gelu", norm_eps=1e-6)
            if timm.is_model(name):
                kwargs = value_below(file.state, "args", "model_kwargs")
                args = dict(kwargs) if isinstance(kwargs, Mapping) else {}
                return Stated(stated.by, name.split(".")[0], args)
            if MAE_ARCH.fullmatch(name) and width in MAE:
                return replace(stated, num_heads=MAE[width])
            if DINO_ARCH.fullmatch(name) and is_dino:
                return replace(stated, num_heads=DINO.get(width))
    return None


def _implied(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated:
    """The network that names and positions identify."""
    width, position = len(weights[PATCHES]), weights.get("pos_embed")
    axis = None if position is None else _fixed_axis(position)
    arch = str(file.state.get("arch"))

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in file.tensors)

    is_dinov2 = (
        "blocks.0.ls1.gamma" in weights
        and has(r"mask_token$")
        and position is not None
        and position.shape[1] == 37**2 + 1
    )
    for by, is_it, heads in (
        ("its names (MoCo-v3)", has(r"(momentum|base)_encoder\."), MOCO),
        ("its fixed positions and arch (MoCo-v3)", axis == 0 and arch.startswith("vit_"), MOCO),
        ("its fixed positions (MAE)", axis == 1 and width in MAE, MAE),
        ("its names (ViTPose)", has(r"last_norm\.weight$"), VITPOSE),
        ("its names (DINOv2)", is_dinov2, DINO),
    ):
        if is_it:
            return Stated(
                by,
                num_heads=heads.get(width),
                activation="gelu",
                norm_eps=1e-6,
                mean=IMAGENET_MEAN,
                std=IMAGENET_STD,
            )
    if axis == 0 and width in MOCO:  # others fix their positions so too
        return Stated(likely_heads=(MOCO[width], "MoCo-v3, which has such positions, has"))
    return Stated()


def _fixed_axis(position: Tensor) -> int | None:
    """Axis of a square grid that the first half of fixed sine-cosine positions encodes.

    Args:
        position: [1, 1 + g*g, D], or without the class token's.
    Returns: 0 for rows (MoCo-v3), 1 for columns (MAE), None for learned positions.
    """
    patches = position[0] if position.ndim == 3 else position.new_zeros(0, 0)
    grid, width = math.isqrt(len(patches)), patches.shape[-1]
    patches = patches[len(patches) - grid**2 :].float()
    if grid < 2 or width % 4:
        return None
    rows = torch.arange(grid, dtype=torch.float32).repeat_interleave(grid)
    omega = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    angle = rows[:, None] * omega
    encoded = torch.cat([angle.sin(), angle.cos()], dim=1)
    for axis, half in enumerate(patches.split(width // 2, dim=1)):
        if torch.allclose(half, encoded, atol=1e-3):
            return axis
    return None
