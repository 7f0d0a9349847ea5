"""The ViT among a file's tensors, under timm's names.

Most projects share timm's name of the patch embedding; what stands before it is the prefix to
strip. Hugging Face's ViT, ViT-MAE and DINOv2 are renamed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from handmim.models.weight_files import OPTION, WeightFile

ANCHOR = "patch_embed.proj.weight"
HF_ANCHOR = "embeddings.patch_embeddings.projection.weight"
TOKENS = re.compile(
    r"cls_token|pos_embed|(?!.*(decoder|mask))[^.]*(regist|(reg|storage|mem\w*|dist\w*)_token)[^.]*|regs?"
)
NORMS = re.compile(r"(ln_pre|pre_\w*norm|\w*emb\w*_norm|norm_\w*emb\w*|patch_norm)\.(weight|bias)")
PARTS = ("blocks.", "patch_embed.", "norm.", "norm_pre.", "rope", "freqs_cis", "rel_pos", "shared_")
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


@dataclass(frozen=True)
class FoundViT:
    """A ViT among tensors.

    Args:
        prefix: of its names in the file.
        weights: its tensors as in the file, under timm's names.
        mask_token: [1, 1, D] where the encoder has one.
        unused: number of other tensors by the first part of their names.
    """

    prefix: str
    weights: dict[str, Tensor]
    mask_token: Tensor | None = None
    unused: dict[str, int] = field(default_factory=dict)


def find_vit(file: WeightFile) -> FoundViT:
    """The ViT of a file: of several the teacher's, or an average's, comes first.

    Raises: ValueError for a file without one.
    """
    anchor, prefixes = ANCHOR, _prefixes(file.tensors, ANCHOR)
    if not prefixes:
        anchor, prefixes = HF_ANCHOR, _prefixes(file.tensors, HF_ANCHOR)
    if not prefixes:
        raise ValueError(_no_vit(file))
    prefix = min(prefixes, key=_rank)
    # A decoder keeps its mask token among the encoder's names (MAE).
    has_decoder = any(k.startswith(f"{prefix}decoder_") for k in file.tensors)
    mask_names = [f"{prefix}masked_embed", f"{prefix}mask_token", f"{prefix}embeddings.mask_token"]
    mask_names.append(f"{prefix.removesuffix('net.')}mask_token")  # of this project's ViT
    weights, unused = dict[str, Tensor](), dict[str, int]()
    mask_token: Tensor | None = None
    for key, value in file.tensors.items():
        name = _timm_name(key.removeprefix(prefix), anchor)
        if key in mask_names and not has_decoder:
            mask_token = value.float().reshape(1, 1, -1)
        elif key.startswith(prefix) and (
            name.startswith(PARTS) or TOKENS.fullmatch(name) or NORMS.fullmatch(name)
        ):
            weights[name] = value
        else:
            group = _group(key, prefix)
            unused[group] = unused.get(group, 0) + 1
    if anchor == HF_ANCHOR:
        _join_qkv(weights)
    if weights[ANCHOR].ndim != 4:
        raise ValueError(
            f"{file.source} embeds patches by a tensor {tuple(weights[ANCHOR].shape)}, this ViT by "
            f"a convolution of images [D, 3, p, p] ({OPTION})"
        )
    return FoundViT(prefix, weights, mask_token, unused)


def _prefixes(tensors: Mapping[str, Tensor], anchor: str) -> list[str]:
    return [k.removesuffix(anchor) for k in tensors if k == anchor or k.endswith(f".{anchor}")]


def _timm_name(name: str, anchor: str) -> str:
    """A name below the prefix as timm has it."""
    if anchor == HF_ANCHOR:
        for pattern, new in HF_NAMES:
            name = re.sub(pattern, new, name)
    name = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)  # DINOv2 in chunks
    return re.sub(r"^last_norm\.", "norm.", name)  # ViTPose


def _join_qkv(weights: dict[str, Tensor]) -> None:
    """Separate maps to queries, keys and values as one, in place."""
    for name in [k for k in weights if re.search(r"\.attn\.query\.(weight|bias)$", k)]:
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(k in weights for k in names):
            joined = torch.cat([weights.pop(k) for k in names])
            weights[name.replace(".query.", ".qkv.")] = joined


def _no_vit(file: WeightFile) -> str:
    """Words about a file without a ViT."""
    for pattern, words in OTHERS:
        if any(re.search(pattern, name) for name in file.tensors):
            return f"{file.source} holds no plain ViT but {words} ({OPTION})"
    return (
        f"{file.source} holds no plain ViT: no tensor is named ...{ANCHOR}; its names begin "
        f"{sorted(file.tensors)[:3]} ({OPTION})"
    )


def _rank(prefix: str) -> tuple[bool, bool, int]:
    is_mean = any(word in prefix for word in ("teacher", "ema", "averaged", "momentum_encoder"))
    return "student" in prefix, not is_mean, len(prefix)


def _group(name: str, prefix: str) -> str:
    """First part of a name, below what it shares with the ViT's prefix."""
    shared = prefix
    while shared and not name.startswith(shared):
        shared = shared.rstrip(".").rpartition(".")[0]
        shared = f"{shared}." if shared else ""
    return name[len(shared) :].split(".")[0]
