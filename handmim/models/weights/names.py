"""The ViT among a file's tensors, under timm's names, and the exact changes that let a plain ViT
compute what the source computes. What precedes timm's name of the patch embedding is the prefix."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT
from handmim.models.weights.files import WeightFile

Weights = dict[str, Tensor]
PATCHES, PATCH_BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
HF_PATCHES = "embeddings.patch_embeddings.projection.weight"
KEPT = re.compile(  # names of a ViT's parts, among them some that ours lacks
    r"(blocks\.|patch_embed\.|norm\.|norm_pre\.|rope|freqs_cis|rel_pos|shared_).*"
    r"|cls_token|pos_embed|regs?"
    r"|(?!.*(decoder|mask))[^.]*(regist|(reg|storage|mem\w*|dist\w*)_token)[^.]*"
    r"|(ln_pre|pre_\w*norm|\w*emb\w*_norm|norm_\w*emb\w*|patch_norm)\.(weight|bias)"
)
HF_NAMES = (  # Hugging Face's names below a prefix, and timm's
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
OTHER_NAMES = (
    (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),  # DINOv2 in chunks
    (r"^last_norm\.", "norm."),  # ViTPose
)
OTHERS = (  # names of transformers that are not read, and why
    (r"(^|\.)(visual\.)?transformer\.resblocks\.|vision_model\.", "CLIP or SigLIP under names of "
     "their own: take timm's conversion, or the vision tower's state dict under timm's names"),
    (r"embeddings\.patch_embeddings\.weight$", "DINOv3 of Hugging Face: its rotary positions are "
     "not those of this ViT"),
    (r"patch_embed\.(proj\.)?\d+\.|patch_embed\.(backbone|conv)", "a patch embedding of several "
     "layers, which this ViT does not have"),
    (r"lora_(A|B)\.", "LoRA adapters alone: merge them into their base model first"),
    (r"layer1\.0\.conv1\.weight$", "a ResNet"),
    (r"^optimizer\.", "an optimizer without a model"),
)  # fmt: skip
FOREIGN = (  # names of tensors, and what they are part of
    (r"(^|\.)(rope\w*|rotary\w*|freqs_cis|freqs|inv_freq|periods)($|\.)", "rotary positions"),
    (r"relative_position|rel_pos|rpb", "relative position biases"),
    (r"^dist_token$", "a distillation token"),
    (r"^(?!dist_token)[^.]*(reg|_token)[^.]*$", "register tokens"),
    (r"\.(w12|w1|w2|w3|fc1_g|fc1_x|weights_in|gate_proj|up_proj)\.", "a gated MLP (SwiGLU)"),
    (r"\.[qk]_norm\.", "norms of queries and keys"),
    (r"\.(attn\.norm|mlp\.norm|sub_norm|inner_attn_ln|ffn_ln)\.", "norms within blocks"),
    (r"^(norm_pre|ln_pre|pre_\w*norm|\w*emb\w*_norm|norm_\w*emb\w*|patch_norm)\.",
     "a norm before the blocks (CLIP)"),
    (r"^patch_embed\.(norm|proj\.\d|backbone)", "a patch embedding of several layers"),
    (r"\.attn\.([qkv]|[qkv]_proj|query|key|value|in_proj)\.", "separate maps to queries and keys"),
    (r"\.(experts|attns|ffns)\.|\.lambda_|\.proj_[lw]\.|qkv\.bias_mask", "blocks of another kind"),
)  # fmt: skip
# Layer scale, and the map whose output it multiplies.
SCALE = re.compile(r"(blocks\.\d+\.)(?:(ls1\.gamma|gamma_1)|ls2\.gamma|gamma_2)")
BIASES = ("attn.qkv.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias", PATCH_BIAS)
AVERAGES = re.compile(r"teacher|ema|averaged|momentum_encoder")


class FoundViT(NamedTuple):
    """A ViT among tensors."""

    prefix: str  # of its names in the file
    weights: Weights  # as in the file, under timm's names
    mask_token: Tensor | None  # [1, 1, D] where the encoder has one
    unused: dict[str, int]  # other tensors by first part of a name


def find_vit(file: WeightFile) -> FoundViT:
    """The ViT of a file: of several the teacher's, or an average's, comes first."""
    ends = PATCHES, HF_PATCHES
    ours, hugging_face = (
        [k.removesuffix(end) for k in file.tensors if f".{k}".endswith(f".{end}")] for end in ends
    )
    prefixes, renames = ours or hugging_face, OTHER_NAMES if ours else HF_NAMES + OTHER_NAMES
    if not prefixes:
        kinds = (k for p, k in OTHERS if any(re.search(p, name) for name in file.tensors))
        text = f": no tensor is named ...{PATCHES}; its names begin {sorted(file.tensors)[:3]}"
        text = next((f" but {kind}" for kind in kinds), text)
        raise ValueError(f"{file.source} holds no plain ViT{text}")
    prefix = min(prefixes, key=lambda p: ("student" in p, not AVERAGES.search(p), len(p)))
    # A decoder keeps its mask token among the encoder's names (MAE).
    has_decoder = any(k.startswith(f"{prefix}decoder_") for k in file.tensors)
    mask_names = [f"{prefix}{n}" for n in ("masked_embed", "mask_token", "embeddings.mask_token")]
    mask_names.append(f"{prefix.removesuffix('net.')}mask_token")  # of this project's ViT
    weights, unused, mask_token = Weights(), Counter[str](), None
    for key, value in file.tensors.items():
        name = key.removeprefix(prefix)
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        if key in mask_names and not has_decoder:
            mask_token = value.float().reshape(1, 1, -1)
        elif key.startswith(prefix) and KEPT.fullmatch(name):
            weights[name] = value
        else:  # by the first part of its name below what it shares with the prefix
            parts = zip_longest(key.split("."), prefix.split(".")[:-1])
            unused[next((mine for mine, shared in parts if mine != shared), None) or key] += 1
    queries = [] if ours else [k for k in weights if ".attn.query." in k]
    for name in queries:
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(k in weights for k in names):
            joined = torch.cat([weights.pop(k) for k in names])
            weights[name.replace(".query.", ".qkv.")] = joined
    if weights[PATCHES].ndim != 4:
        text = f"by a tensor {tuple(weights[PATCHES].shape)}, this ViT by a convolution"
        raise ValueError(f"{file.source} embeds patches {text} of images [D, 3, p, p]")
    return FoundViT(prefix, weights, mask_token, dict(unused))


def foreign_parts(weights: Mapping[str, Tensor], mine: Mapping[str, Any]) -> list[str]:
    """Parts that our ViT (`mine`) lacks, each with the tensor that shows it."""
    extra = [name for name in weights if name not in mine]
    shown = ((part, [k for k in extra if re.search(pattern, k)]) for pattern, part in FOREIGN)
    found = [f"{part} ({names[0]})" for part, names in shown if names]
    gates, inner = (weights.get(f"blocks.0.mlp.{part}.weight") for part in ("fc1", "fc2"))
    if gates is not None and inner is not None and len(gates) == 2 * inner.shape[-1]:
        found.append("a gated MLP (fc1 has twice the rows that fc2 takes)")
    if "pos_embed" not in weights and "pos_embed" in mine:
        found.append("no learned positions (pos_embed is missing)")
    bare = [n for n in weights if re.search(r"norm\d\.weight$", n) and n[:-6] + "bias" in mine]
    if bare and not any(name[:-6] + "bias" in weights for name in bare):
        found.append(f"norms without bias, as RMSNorm ({bare[0][:-6]}bias is missing)")
    return found


# The functions below change `weights`, tensors of a source under timm's names, in place, and return
# what was done. `mine` are the tensors of our ViT.


def fold_layer_scale(weights: Weights, mine: Mapping[str, Any]) -> list[str]:
    """Multiply each branch's scale into the map before it, unless our ViT has scales."""
    found = [m for name in weights if name not in mine and (m := SCALE.fullmatch(name))]
    for scale in found:
        gamma, scaled = weights.pop(scale[0]), "attn.proj" if scale[2] else "mlp.fc2"
        for part, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            if (key := f"{scale[1]}{scaled}.{part}") in weights:
                weights[key] = weights[key] * factor
    return [f"layer scale of {len(found)} branches"] if found else []


def fold_biases(weights: Weights, mine: Mapping[str, Any]) -> list[str]:
    """Write out biases that the source leaves away, which are zeros: BEiT and EVA have biases of
    queries and values alone, other ViTs none of one kind at all."""
    done = []
    for name in [k for k in weights if k.endswith(".attn.q_bias")]:
        key, value, joined = (name.replace("q_bias", n) for n in ("k_bias", "v_bias", "qkv.bias"))
        if value in weights:
            q, v = weights.pop(name), weights.pop(value)
            weights[joined] = torch.cat([q, weights.pop(key, torch.zeros_like(q)), v])
            done = ["biases of queries and values"]
    for kind in BIASES:
        names = [k for k in mine if k.endswith(kind)]
        if names and not any(k.endswith(kind) for k in weights):
            weights |= {k: torch.zeros(mine[k].shape) for k in names}
            done.append(f"{kind} is 0")
    return done


def fold_pixel_constants(
    weights: Weights, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> list[str]:
    """Let the patch embedding take pixels normalised by ImageNet's constants."""
    if mean is None or std is None or 0.0 in std or (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return []
    kernel = weights[PATCHES] / torch.tensor(std).view(1, 3, 1, 1)  # of pixels less their mean
    difference = torch.tensor(IMAGENET_MEAN) - torch.tensor(mean)
    shift = (kernel.sum(dim=(2, 3)) * difference).sum(dim=1)
    weights[PATCHES] = kernel * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    weights[PATCH_BIAS] = weights.get(PATCH_BIAS, 0.0) + shift
    return [f"pixel constants {mean}, {std}"]


def complete_positions(weights: Weights, source: str) -> tuple[tuple[int, int], list[str]]:
    """Give positions a first one for the class token where they have none. Returns: rows and
    columns of the source's grid, and what was done."""
    position, width = weights["pos_embed"], len(weights[PATCHES])
    if position.ndim != 3 or position.shape[0] != 1 or position.shape[2] != width:
        raise ValueError(
            f"{source} has positions {tuple(position.shape)}, [1, N, {width}] are required"
        )
    count, first = position.shape[1], position[:, :1]
    for num in (count, count - 1) if count > 1 else ():
        side, third = math.isqrt(num), math.isqrt(num // 12)
        is_square = side**2 == num
        if not is_square and num != 12 * third**2:
            continue
        grid = (side, side) if is_square else (4 * third, 3 * third)  # as ViTPose's 16 x 12
        if num == count:
            weights["pos_embed"] = torch.cat([torch.zeros_like(first), position], dim=1)
            return grid, ["pos_embed: class token gets 0"]
        if is_square or "cls_token" in weights:
            return grid, []
        # ViTPose has no class token and adds its position to those of all patches.
        others = position[:, 1:] + first
        weights["pos_embed"] = torch.cat([torch.zeros_like(first), others], dim=1)
        return grid, ["pos_embed: first position added to the others (ViTPose)"]
    text = "no square grid and no upright one of 4:3, with or without one class token"
    raise ValueError(f"{source} has {count} positions, which is {text}")


def resample(backbone: ViT, weights: Weights, grid: tuple[int, int]) -> list[str]:
    """Resample patch and position embeddings of a grid to a backbone's patch side and grid."""
    done, kernel, side = list[str](), weights[PATCHES], backbone.patch_px
    if tuple(kernel.shape[-2:]) != (side, side):
        weights[PATCHES] = resample_patch_embed(kernel, [side, side])
        done.append(f"patch_embed {kernel.shape[-1]} px -> {side} px")
    if grid != backbone.grid_hw:
        to = list(backbone.grid_hw)
        weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], to, list(grid))
        done.append("pos_embed {} x {} -> {} x {}".format(*grid, *to))
    return done
